"""The page about a model: what it is, how good it is, and how to use it."""

from collections.abc import Mapping
from pathlib import Path

from mtgen.checkpointing.averaged_weights import AveragedWeights
from mtgen.models.model import Model
from mtgen.tracking.journal import read_journal
from mtgen.version import DESCRIPTION

METRIC_PREFIXES = ("evaluation/", "test/")
"""What names of metrics begin with, the better ones first: those of `mtgen evaluate`, those of training."""

TENSOR_MEANINGS = {
    "latent": "standard normal; smaller is likelier and less diverse. The predictor's makes the generator draw its image again",
    "condition_class": "number of a class",
    "condition_labels": "1 for every class that should be in the image",
    "condition_caption": "tokens, 0 after the end",
    "condition_sound": "log-mel spectrogram, -1 (silent) to 1",
    "condition_image": "the predictor's `embedding` of an image that the samples should resemble",
    "condition_layout": "one-hot mask",
    "condition_boxes": "1 where a box of the class covers a pixel's center",
    "condition_domain": "number of a data set of the mixture",
    "image": "-1 to 1",
    "mask": "probability of every mask class",
    "box_maps": "centers of each class, then width and height times the heat of the hottest",
    "boxes": "x0, y0, x1, y1 as shares of the sides, class, score; the surest first, rows of zeros are none",
    "embedding": "in the space that all conditions share",
}
"""What the numbers of a tensor are."""


def metrics(folder: Path) -> tuple[int, dict[str, float]]:
    """The last numbers on test data in a run's journal, by name, and after how many images; none where there are none."""
    for begin in METRIC_PREFIXES:
        found: dict[str, float] = {}
        images = 0
        for row in read_journal(folder):
            some = {name.removeprefix(begin): value for name, value in row.values.items() if name.startswith(begin)}
            found |= some
            images = row.images if some else images
        if found:
            return images, found
    return 0, {}


def page(
    model: Model,
    weights: AveragedWeights,
    run: Path,
    picture: str | None,
    graphs: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]],
    opset: int,
) -> str:
    """Markdown, the whole of `README.md`."""
    config, card, (height, width) = model.config, model.card, model.size
    parts = [
        f"# {config.name}",
        f"A model of mtgen: {DESCRIPTION}",
    ]
    if picture:
        parts.append(f"![Samples of the model]({picture})")
    said = {
        "images": f"{width}x{height} pixels, {'gray' if model.channels == 1 else 'RGB'}",
        "tasks": ", ".join(task.name for task in model.networks.tasks),
        "asked for by": ", ".join(model.conditions) or "nothing",
        "classes": ", ".join(card.classes),
        "mask classes": ", ".join(card.mask_classes),
        "trained on": card.name + (f" ({card.source})" if card.source else ""),
        "licence of the data": card.licence,
        "images seen": f"{weights.images:,}",
    }
    parts.append(_table(("", ""), {name: value for name, value in said.items() if value}))
    images, numbers = metrics(run)
    if numbers:
        parts.append(
            f"## On test data, at {images:,} images\n\n"
            + _table(("metric", "value"), {k: f"{v:.4f}" for k, v in numbers.items()})
        )
    parts.append(
        "## Use\n\n```python\nimport mtgen\n\nmodel = mtgen.load('FOLDER')  # this one\nmodel.predict('photo.png').rows\n```"
    )
    if config.generates:
        parts.append(
            "`model.sample(n=16).save('drawn')` draws; on the command line: `mtgen sample`, `predict` and `translate` take the folder."
        )
    if graphs:
        parts.append(
            f"## ONNX (operators of version {opset}, any batch size B)\n\n"
            "Run with `onnxruntime` and NumPy alone; a `*_given` says in which rows that condition is asked for: give zeros and `False` "
            "for what is not. The names of the classes are metadata of the files (`classes`, `mask_classes`, JSON)."
        )
    for name, (inputs, outputs) in graphs.items():
        rows = {f"`{n}`": (f"in, {shape}", TENSOR_MEANINGS.get(n, "")) for n, shape in inputs.items()}
        rows |= {f"`{n}` ": (f"out, {shape}", TENSOR_MEANINGS.get(n, "")) for n, shape in outputs.items()}
        parts.append(
            f"`{name}`\n\n" + _table(("tensor", "shape", ""), {n: " | ".join(cells) for n, cells in rows.items()})
        )
    return "\n\n".join(parts) + "\n"


def _table(columns: tuple[str, ...], rows: Mapping[str, str]) -> str:
    head = f"| {' | '.join(columns)} |\n|{'-|' * len(columns)}\n"
    return head + "\n".join(f"| {name} | {value} |" for name, value in rows.items())
