"""Keeps libraries from importing modules that mtgen does not use; each costs every process of a run seconds.

- `Adam` keeps torch from importing its compiler, `torch._dynamo`: 3.5 s of CPU.
- `hide_module` keeps DeepSpeed from importing MLflow, which only its autotuner uses: 2.4 s of CPU.

Both were measured on a CPU with torch 2.13 and DeepSpeed 0.19.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

DISABLE_ATTRIBUTE = "__dynamo_disable"
"""Attribute in which torch caches the uncompiled version of a method."""
COMPILER = "torch._dynamo"


class Adam(torch.optim.Adam):
    """`torch.optim.Adam`, step for step, without importing torch's compiler.

    As of torch 2.13, two decorators import the compiler at the first call of a method, only to exclude the method:

    - `torch._disable_dynamo` (torch/_compile.py, line 45), around `add_param_group`, `state_dict` and
      `load_state_dict`, imports the compiler if the method has no attribute `__dynamo_disable` with its uncompiled
      version. The constructor sets that attribute to the method itself: nothing is compiled here.
    - `_use_grad_for_differentiable` (torch/optim/optimizer.py, line 61), around `step`, calls the compiler's
      `graph_break`. `step` calls the method inside it, without gradients.

    In a torch without these decorators, and where the compiler has been imported before, all methods are torch's own.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        for method in ("add_param_group", "state_dict", "load_state_dict"):
            _exclude_from_compiler(getattr(torch.optim.Optimizer, method))
        super().__init__(*arguments, **named)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step for the gradients that the parameters hold."""
        return _STEP(self, closure)


_STEP = inspect.unwrap(torch.optim.Adam.step)


def _exclude_from_compiler(method: Callable[..., Any]) -> None:
    """Mark a method of torch's as excluded from the compiler, if a decorator would import the compiler to do so."""
    wrapped = getattr(method, "__wrapped__", None)
    if wrapped is not None and COMPILER not in sys.modules:
        setattr(wrapped, DISABLE_ATTRIBUTE, wrapped)


@contextmanager
def hide_module(module: str) -> Iterator[None]:
    """Make `import module` raise ImportError in this context, as if it were not installed.

    A module that has been imported before stays as it is.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # documented: Python's reference, 5.3.1, the module cache
    try:
        yield
    finally:
        del sys.modules[module]
