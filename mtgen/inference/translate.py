"""Translate images into another domain."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from mtgen.errors import ConfigError, DataError
from mtgen.inference.inputs import InputImage, Inputs, load_batches
from mtgen.inference.label_names import parse_class, parse_domain
from mtgen.inference.predict import PREDICT_BATCH_SIZE, PredictionSummary, save_picture
from mtgen.models.loading import find_run, load_run
from mtgen.models.model import Model
from mtgen.schema import Canvas, Prompt
from mtgen.utils import counter_rng
from mtgen.utils.progress_callback import StageProgress
from mtgen.visualization.grids import to_pictures


def target_prompt(model: Model, text: str) -> Prompt:
    """Prompt of one row for a target domain: a data set of the mixture or a class, depending on the run.

    Raises:
        ConfigError: the run was not trained to translate, or the domain does not exist.
    """
    tasks = model.config.task_settings()
    settings = next((tasks[task.name] for task in model.networks.tasks if task.name == "translation"), None)
    if settings is None:
        raise ConfigError(
            f"--to {text!r}: the run was not trained to translate (tasks.translation); its tasks: {', '.join(tasks)}"
        )
    name = str(getattr(settings, "domain"))  # noqa: B009 - only this task has the setting
    number = parse_class(text, model.card) if name == "class" else parse_domain(text, model.config)
    return Prompt(1, {name: torch.tensor([number])}, {name: torch.tensor([True])})


def translate_run(
    run: Path,
    to: str,
    paths: Sequence[str | Path],
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    *,
    checkpoint: str | None = None,
    on_result: Callable[[str, Path], None] = lambda name, path: None,
    on_error: Callable[[str], None] = lambda text: None,
    progress: StageProgress = lambda stage, done, total: None,
) -> PredictionSummary:
    """Translate images into the domain `to` with a run, and write each as a PNG file of the run's resolution.

    The latent of image i is a function of (seed, i) only.

    Args:
        paths: image files, folders of them, data sets.
        out: folder for the pictures; default: in the run's folder.
        checkpoint: default: the newest.
        on_result: called with the name of each image and the path of its translation.
        on_error: called with one line for each image that cannot be read.

    Raises:
        ConfigError: as `target_prompt`, or the results would be written among the images.
        DataError: no image was found.
        CheckpointError: the run has no such checkpoint, or it is damaged.
    """
    folder = find_run(run)
    model, _ = load_run(folder, device, checkpoint)
    prompt = target_prompt(model, to)
    into = out or folder / "translations" / "".join(c if c.isalnum() or c in "-_" else "_" for c in to)
    inputs = Inputs(paths, into)
    total = len(inputs)
    summary = PredictionSummary(0, 0, into, inputs.left_alone.lines())
    for source, canvas in translate_images(model, inputs, prompt, seed):
        if isinstance(canvas, DataError):
            summary.damaged += 1
            on_error(str(canvas))
        else:
            summary.processed += 1
            base = into / source.result_path
            path = base.with_name(f"{base.name}.png")
            save_picture(to_pictures(canvas.image)[0], path)
            on_result(source.name, path)
        progress("translate images", summary.processed + summary.damaged, total)
    return summary


def translate_images(
    model: Model, sources: Iterable[InputImage], prompt: Prompt, seed: int
) -> Iterator[tuple[InputImage, Canvas | DataError]]:
    """Translate images into the domain of a prompt of one row, in order and one batch at a time.

    The latent of image i is a function of (seed, i) only.

    Yields:
        Each image with its translation, a canvas of one sample on the CPU; or with its error if it cannot be read.
    """
    position = 0
    for found, images in load_batches(iter(sources), model.channels, model.size, PREDICT_BATCH_SIZE):
        good = [row for row, (_, crop) in enumerate(found) if not isinstance(crop, DataError)]
        translated: dict[int, Canvas] = {}
        if good:
            latent = counter_rng.normal(
                seed, "translate", position + torch.tensor(good), (model.latent_size,), model.device
            )
            canvas = model.translate(images, prompt.rows(torch.zeros(len(good), dtype=torch.int64)), latent)
            assert canvas is not None  # `prompt` comes from `target_prompt`, which checks this
            translated = {row: canvas.map(lambda tensor, n=n: tensor[n : n + 1].cpu()) for n, row in enumerate(good)}
        for row, (source, crop) in enumerate(found):
            yield source, crop if isinstance(crop, DataError) else translated[row]
        position += len(found)
