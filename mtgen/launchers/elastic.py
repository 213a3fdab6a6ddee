"""As many workers as there is room for: the run goes on with fewer when nodes are lost, and with more when they are back."""

from pathlib import Path
from typing import Any

from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api.config import ScalingConfig

from mtgen.training.protocol import Resize


class ElasticPolicy(ElasticScalingPolicy):
    """Ray Train's own, but for two things: only some numbers of workers share a step evenly, and running workers are asked for a
    checkpoint before they are ended for the sake of more.

    Args:
        counts: numbers of workers that are possible, ascending.
        folder: the run's.
    """

    def __init__(self, scaling_config: ScalingConfig, counts: list[int], folder: Path) -> None:
        super().__init__(scaling_config)
        self._counts = counts
        self._resize = Resize(folder)
        self._wanted: ResizeDecision | None = None

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((count for count in self._counts if count <= possible), default=0)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """With how many workers to begin, or to begin anew after a loss."""
        self._wanted = None
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Whether to begin anew with more workers: once these have written a checkpoint for it."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision) and decision.num_workers > worker_group_state.num_workers:
            self._wanted = decision
            if not self._resize.asked():
                self._resize.ask()
        if self._wanted is None or not self._resize.is_ready():
            return NoopDecision()
        wanted, self._wanted = self._wanted, None
        return wanted
