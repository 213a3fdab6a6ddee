"""What a run shows of itself: pictures and quick test metrics while it trains, every metric when it is asked for."""

from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from mtgen import pictures
from mtgen.config import Config
from mtgen.data.loader import once
from mtgen.data.mixture import Samples, open_samples
from mtgen.data.source import located
from mtgen.data.view import view_of
from mtgen.evaluation.metric import Progress
from mtgen.evaluation.suite import Report, check_names, evaluate
from mtgen.journal import Journal
from mtgen.model import Model
from mtgen.runs import find_run, load_run
from mtgen.sampling import balanced_labels, generate
from mtgen.schema import Batch, Canvas, Prompt
from mtgen.tracking import send_kept

GRID_ROWS = 8
"""Samples of each class in a run's grid."""


def batches(config: Config, index: Samples, limit: int | None = None) -> Any:
    """A split once, as the networks see it, without augmentation."""
    return once(index, view_of(config), batch_size=100, limit=limit if config.data.limit is None else config.data.limit)


class Snapshots:
    """Pictures of a fixed seed and quick metrics, again and again from the same samples.

    Args:
        config: of the run; pictures go into its folder's `samples/`.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.test = open_samples(config.data, "test")
        self.train = open_samples(config.data, "train")

    def __call__(self, model: Model, images: int) -> tuple[dict[str, float], list[Path]]:
        """The averaged model after so many images -> numbers, and the pictures that were written."""
        seed = self.config.seed
        train = list(batches(self.config, self.train, limit=2000))
        report = evaluate(model, batches(self.config, self.test), train, samples=2000, seed=seed, quick=True)
        folder = self.config.folder / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, picture in self._pictures(model).items():
            path = folder / f"{images:09d}-{name}.png"
            picture.save(path)
            picture.save(folder / f"latest-{name}.png")
            paths.append(path)
        return dict(report), paths

    def _pictures(self, model: Model) -> dict[str, Any]:
        shown: Batch = next(iter(batches(self.config, self.test, limit=32)))
        made = {"grid": grid(model, self.config.seed), "reading": pictures.reading_grid(shown, model.predict(shown.image), model.card)}
        labels = torch.where(shown.present["class"], shown.label, -1)
        if (again := model.reconstruct(shown.image, Prompt.of_classes(labels))) is not None:
            made["reconstruction"] = pictures.reconstruction_grid(shown.image, again.image)
        return made


def grid(model: Model, seed: int, rows: int = GRID_ROWS) -> Any:
    """The grid of a run: the first classes side by side, a few samples of each, always from the same latents."""
    classes = list(range(min(len(model.card.classes), 10)))
    labels = balanced_labels(rows * max(len(classes), 8), classes)
    canvas = Canvas.cat([part for part, _ in generate(model, Prompt.of_classes(labels), seed, "grid")])
    return pictures.sample_grid(canvas, labels, model.card)


def evaluate_run(
    run: Path, against: str | None, n: int | None, seed: int, device: str, progress: Progress, metrics: list[str] | None = None
) -> Report:
    """Every metric of a run's newest checkpoint; against its own data, the numbers also go to its journal and its MLflow run.

    Args:
        against: another data set to test on, a folder or a URL.
        n: how many images are generated; default: the configuration's.
        metrics: which; default: all.

    Raises:
        ConfigError: there is no such metric.
    """
    check_names(metrics or [])
    folder = find_run(run)
    model, images = load_run(folder, device)
    config = model.config
    other = {"path": located(str(against)), "mixture": []} if against else {}
    data = config.data.model_copy(update=other)
    test, train = open_samples(data, "test"), open_samples(data, "train")
    samples = n or config.evaluate.samples
    report = evaluate(model, batches(config, test), batches(config, train), samples=samples, seed=seed, metrics=metrics, progress=progress)
    if against is None:
        with closing(Journal(folder)) as journal:
            # Names of their own: MLflow has values of the quick metrics at this step already, of fewer samples.
            journal.row(images, {f"evaluation/{name.rpartition('/')[2]}": value for name, value in report.items()})
        send_kept(config, folder)
    return report
