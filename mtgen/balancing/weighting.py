"""What a weighting is: from the Gramian of the tasks' gradients to one weight a task."""

from collections.abc import Callable

from torch import Tensor

Weighting = Callable[[Tensor], Tensor]
"""`[K,K]` Gramian, finite, with a positive diagonal -> `[K]` weights. Scale: 1 for each of K equal, orthogonal gradients."""
