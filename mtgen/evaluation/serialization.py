"""State of metrics as JSON and tensors, so that an interrupted evaluation can resume."""

from typing import Any

from torch import Tensor


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Convert a state into JSON values; its tensors are added to `tensors` and referred to by name.

    Raises:
        TypeError: the state holds something else than tensors, numbers, text, and lists and dictionaries of these.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensor = value.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory
        tensors[name] = tensor.clone() if value.untyped_storage().nbytes() != value.nbytes else tensor
        return {"tensor": name}
    if isinstance(value, list):
        return [pack(item, tensors) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {str(key): pack(item, tensors) for key, item in value.items()}}
    raise TypeError(
        f"{type(value).__name__}: cannot be saved as part of a metric's state; "
        "use tensors, numbers, text, and lists and dictionaries (with text keys) of these"
    )


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """The state that `pack` converted."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        return tensors[packed["tensor"]].clone()
    return {key: unpack(item, tensors) for key, item in packed["dict"].items()}
