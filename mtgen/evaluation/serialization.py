"""What metrics have collected, as tensors and JSON, so that an evaluation that was interrupted can go on."""

from typing import Any

import torch
from torch import Tensor

from mtgen.evaluation.boxes import BoxPrecision
from mtgen.evaluation.confusion import Confusion
from mtgen.evaluation.features import Features
from mtgen.evaluation.moments import ClassMoments
from mtgen.evaluation.subsample import Choice

COLLECTORS = {kind.__name__: kind for kind in (BoxPrecision, Choice, ClassMoments, Confusion, Features)}
"""What a metric may hold beside tensors, numbers, text, and lists, tuples and dictionaries of all these."""


def packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON that `unpacked` makes an equal value from; its tensors are added to `tensors`.

    Raises:
        TypeError: it holds something else than a metric may.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        shares = value.untyped_storage().nbytes() != value.nbytes
        tensors[name] = value.detach().cpu().contiguous().clone() if shares else value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [packed(one, tensors) for one in value]}
    if isinstance(value, dict):
        return {"dict": [[packed(name, tensors), packed(one, tensors)] for name, one in value.items()]}
    if COLLECTORS.get(type(value).__name__) is type(value):
        return {"collector": type(value).__name__, "holds": packed(vars(value), tensors)}
    raise TypeError(f"{type(value).__name__}: a metric cannot hold it, since an evaluation could not go on with it")


def unpacked(told: Any, tensors: dict[str, Tensor]) -> Any:
    """What `packed` was given."""
    if not isinstance(told, dict):
        return told
    if "tensor" in told:
        return torch.clone(tensors[told["tensor"]])
    if "list" in told:
        return [unpacked(one, tensors) for one in told["list"]]
    if "tuple" in told:
        return tuple(unpacked(one, tensors) for one in told["tuple"])
    if "dict" in told:
        return {unpacked(name, tensors): unpacked(one, tensors) for name, one in told["dict"]}
    kind = COLLECTORS[told["collector"]]
    made = kind.__new__(kind)
    vars(made).update(unpacked(told["holds"], tensors))
    return made
