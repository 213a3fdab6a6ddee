"""Guards: they end a run whose gradients or data have gone bad."""

from mtgen.errors import TrainingError
from mtgen.training.bad_samples import DamageLog
from mtgen.training.callbacks.base import Callback
from mtgen.training.callbacks.metrics_logging import MetricsLogging
from mtgen.training.protocol import Outcome
from mtgen.training.row_exchange import RowExchange
from mtgen.training.run_setup import TrainingParts

CHECK_DIVERGENCE_EVERY_STEPS = 8
"""Steps between two checks: reading the counters makes the host wait for the GPU."""


def find_divergence(parts: TrainingParts) -> TrainingError | None:
    """The error of a run with too many non-finite gradients in a row; the counters are the same on all workers."""
    limit = parts.config.train.nonfinite_limit
    for name, engine in parts.engines.items():
        if engine.optimizer.in_a_row.item() >= limit:
            tasks = list(dict.fromkeys(task for gate in parts.gates.values() for task in gate.statistics.nonfinite()))
            first = f", first in the gradients of {', '.join(tasks)}" if tasks else ""
            return TrainingError(
                f"{limit} steps in a row had a non-finite gradient in the {name} (train.nonfinite_limit){first}; "
                f"none was applied. Lower {name}.learning_rate or raise tasks.generation.gamma, and start again: "
                f"training resumes from the last checkpoint in {parts.config.folder / 'checkpoints'}"
            )
    return None


class DivergenceGuard(Callback):
    """Ends a run in which `train.nonfinite_limit` steps in a row had a non-finite gradient.

    Args:
        logging: writes a last row, so that the alarms see the divergence.
    """

    def __init__(self, parts: TrainingParts, logging: MetricsLogging) -> None:
        self.parts = parts
        self.logging = logging

    def on_step_end(self) -> Outcome | None:
        if self.parts.progress.steps % CHECK_DIVERGENCE_EVERY_STEPS:
            return None
        problem = find_divergence(self.parts)
        if problem is None:
            return None
        self.logging.write_row()
        return Outcome.failure(self.parts.progress.images, problem)

    def on_end(self, outcome: Outcome) -> Outcome:
        problem = find_divergence(self.parts)
        if problem is None or outcome.failed:
            return outcome
        return Outcome.failure(self.parts.progress.images, problem)


class BadSampleGuard(Callback):
    """Counts and reports damaged samples, and ends a run in which they are more than `data.damage_limit`.

    Args:
        exchange: says how many there are; which they are is exchanged only if there are new ones.
    """

    def __init__(self, parts: TrainingParts, exchange: RowExchange) -> None:
        self.parts = parts
        self.exchange = exchange
        self.log = DamageLog(
            parts.config.folder, parts.config.data.damage_limit, parts.samples.folder, parts.consensus.group
        )
        self._first_images = parts.progress.images
        self._sent_lines = 0

    def on_step_end(self) -> Outcome | None:
        parts, progress = self.parts, self.parts.progress
        if not progress.row_due(parts.config.train.log_every) or not self.exchange.row().damaged:
            return None
        lines, problem = self.log.count(parts.loader.damaged, progress.images - self._first_images)
        parts.loader.damaged.clear()
        for line in lines:
            parts.warn(line)
        if (
            self.log.lines >= 2 * self._sent_lines
        ):  # the file grows: it is sent again when it has doubled, and at the end
            self._send()
        return None if problem is None else Outcome.failure(progress.images, problem)

    def on_end(self, outcome: Outcome) -> Outcome:
        self._send()
        return outcome

    def _send(self) -> None:
        if self.parts.logger is not None and self.log.lines > self._sent_lines:
            self.parts.logger.artifacts(self.parts.progress.images, [self.log.path])
            self._sent_lines = self.log.lines

    def numbers(self) -> dict[str, float]:
        return self.log.numbers()
