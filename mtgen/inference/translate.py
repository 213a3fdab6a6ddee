"""Draw images anew in another domain."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from mtgen.errors import ConfigError, DataError
from mtgen.inference.inputs import InputImage, Inputs, batches
from mtgen.inference.label_names import parse_class, parse_domain
from mtgen.inference.predict import PREDICT_BATCH_SIZE, PredictionSummary, save
from mtgen.models.loading import find_run, load_run
from mtgen.models.model import Model
from mtgen.schema import Canvas, Prompt
from mtgen.utils import counter_rng
from mtgen.utils.progress_callback import StageProgress
from mtgen.visualization.grids import to_pictures


def target_prompt(model: Model, text: str) -> Prompt:
    """The domain that is asked for as a prompt of one row: a data set of the mixture, or a class, as the run was trained.

    Raises:
        ConfigError: the run does not translate, or knows no such domain.
    """
    tasks = model.config.task_settings()
    settings = next((tasks[task.name] for task in model.networks.tasks if task.name == "translation"), None)
    if settings is None:
        raise ConfigError(
            f"--to {text!r}: the run was not trained to translate (tasks.translation); its tasks: {', '.join(tasks)}"
        )
    name = str(getattr(settings, "domain"))  # noqa: B009 - a setting of that task alone
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
    seen: Callable[[str, Path], None] = lambda name, path: None,
    problem: Callable[[str], None] = lambda text: None,
    progress: StageProgress = lambda stage, done, total: None,
) -> PredictionSummary:
    """Draw images anew in the domain `to` with a run's checkpoint (default: the newest) at the run's resolution; each is written as a PNG.

    Image i's latent is a function of (seed, i) alone.

    Args:
        paths: image files, folders of them, data sets.
        out: folder for the pictures; default: in the run's folder.
        seen: is given the name of each image, and where it was written.
        problem: is given a line for each image that cannot be read; the others go on.
    """
    folder = find_run(run)
    model, _ = load_run(folder, device, checkpoint)
    prompt = target_prompt(model, to)
    into = out or folder / "translations" / "".join(c if c.isalnum() or c in "-_" else "_" for c in to)
    inputs = Inputs(paths, into)
    summary, total = PredictionSummary(0, 0, into), len(inputs)
    for source, canvas in translate_images(model, inputs, prompt, seed):
        if isinstance(canvas, DataError):
            summary.damaged += 1
            problem(str(canvas))
        else:
            summary.read += 1
            place = into / source.place
            path = place.with_name(f"{place.name}.png")
            save(to_pictures(canvas.image)[0], path)
            seen(source.name, path)
        progress("translate images", summary.read + summary.damaged, total)
    return summary


def translate_images(
    model: Model, sources: Iterable[InputImage], prompt: Prompt, seed: int
) -> Iterator[tuple[InputImage, Canvas | DataError]]:
    """Draw images anew in the domain of a prompt of one row, in order and a batch at a time: each as a canvas of one, on the CPU.

    One that cannot be read gives its error, and the others go on. Image i's latent is a function of (seed, i) alone.
    """
    position = 0
    for found, images in batches(iter(sources), model.channels, model.size, PREDICT_BATCH_SIZE):
        good = [row for row, (_, cut) in enumerate(found) if not isinstance(cut, DataError)]
        drawn: dict[int, Canvas] = {}
        if good:
            latent = counter_rng.normal(
                seed, "translate", position + torch.tensor(good), (model.latent_size,), model.device
            )
            canvas = model.translate(images, prompt.rows(torch.zeros(len(good), dtype=torch.int64)), latent)
            assert canvas is not None  # the run translates
            drawn = {row: canvas.map(lambda tensor, n=n: tensor[n : n + 1].cpu()) for n, row in enumerate(good)}
        for row, (source, cut) in enumerate(found):
            yield source, cut if isinstance(cut, DataError) else drawn[row]
        position += len(found)
