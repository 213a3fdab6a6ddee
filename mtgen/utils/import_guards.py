"""What libraries would import for no use of ours: every process of a run pays for it with seconds of CPU before its first step."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_STEP = inspect.unwrap(torch.optim.Adam.step)


class Adam(torch.optim.Adam):
    """torch's, step for step. The first of torch's own imports the compiler (3.5 s), only to tell it to leave optimizers alone."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        for name in ("add_param_group", "state_dict", "load_state_dict"):
            plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
            if plain is not None and "torch._dynamo" not in sys.modules:
                setattr(plain, "__dynamo_disable", plain)  # an assignment in a class would be given its prefix
        super().__init__(*arguments, **named)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step for the gradients that the parameters hold."""
        return _STEP(self, closure)


@contextmanager
def hide_module(module: str) -> Iterator[None]:
    """Within it, an optional module is not there for whoever imports it, unless it has been imported before."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
