"""One row of metrics every `train.log_every` images, and less often in a long run."""

from collections.abc import Sequence

from mtgen.training.callbacks.base import Callback
from mtgen.training.protocol import Outcome
from mtgen.training.row_exchange import RowExchange
from mtgen.training.run_setup import TrainingParts
from mtgen.training.schedules import learning_rate, lr_fraction, scheduled_values


class MetricsLogging(Callback):
    """Writes rows of metrics: means over the steps since the last row, over all workers.

    Args:
        exchange: has what the workers say about these steps.
        sources: callbacks whose numbers belong in each row.
    """

    def __init__(self, parts: TrainingParts, exchange: RowExchange, sources: Sequence[Callback]) -> None:
        self.parts = parts
        self.exchange = exchange
        self.sources = sources

    def on_step_end(self) -> Outcome | None:
        if self.parts.progress.row_due(self.parts.config.train.log_every):
            self.write_row()
        return None

    def write_row(self) -> None:
        """Write one row and begin new means; collective."""
        parts, progress = self.parts, self.parts.progress
        row = self.exchange.row()
        if parts.logger is None:
            return
        numbers = row.means | self._engines(row.means) | self._gates() | row.numbers()
        if parts.config.augment.target is not None:
            numbers["augmentation/probability"] = parts.augmentation.probability
            numbers["augmentation/preference"] = parts.augmentation.preference
        numbers |= self._schedules()
        for source in self.sources:
            numbers |= source.numbers()
        parts.logger.numbers(progress.images, numbers)

    def _schedules(self) -> dict[str, float]:
        """The learning rates, the discriminator's also as a fraction of its peak, and other values on a schedule."""
        config, images = self.parts.config, self.parts.progress.images
        rates = {"discriminator": config.discriminator.learning_rate, "generator": config.generator.learning_rate}
        numbers = {f"learning_rate/{name}": learning_rate(config.train, rates[name], images) for name in rates}
        numbers["learning_rate/factor"] = lr_fraction(config.train, rates["discriminator"], images)
        return numbers | {f"schedule/{key}": value for key, value in scheduled_values(config, images).items()}

    def _engines(self, means: dict[str, float]) -> dict[str, float]:
        """Per network: the sum of its losses, and what its optimizer says about the gradients."""
        numbers = {}
        for name, engine in self.parts.engines.items():
            losses = [value for key, value in means.items() if key.startswith(f"loss_{name[0]}/")]
            optimizer = engine.optimizer
            numbers[f"loss/{name[0]}"] = sum(losses)
            numbers[f"gradient/{name}_norm"] = optimizer.norm.item()
            numbers[f"gradient/{name}_nonfinite_steps"] = optimizer.skipped.item()
            numbers[f"gradient/{name}_cut_steps"] = optimizer.cut.item()
            if optimizer.loss_scale is not None:
                numbers[f"gradient/{name}_loss_scale"] = optimizer.loss_scale.item()
        return numbers

    def _gates(self) -> dict[str, float]:
        return {
            f"balancing_{name}/{key}": value
            for name, gate in self.parts.gates.items()
            for key, value in gate.report().items()
        }
