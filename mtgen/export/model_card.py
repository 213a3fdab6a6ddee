"""The model card (`README.md`) of an exported model: what it is, how good it is, and how to use it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from mtgen.checkpointing.averaged_weights import AveragedWeights
from mtgen.models.backbone_files import backbone_facts
from mtgen.models.model import Model
from mtgen.tracking.journal import EVALUATION_PREFIX, TEST_PREFIX, VALIDATION_PREFIX, read_journal
from mtgen.version import DESCRIPTION

Graphs = Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]]
"""ONNX file -> shapes of its inputs and of its outputs, by name."""

METRIC_TITLES = {
    EVALUATION_PREFIX: "Test metrics",
    VALIDATION_PREFIX: "Validation metrics",
    TEST_PREFIX: "Test metrics",
}
"""Prefix of metric names -> title, the preferred one first: of `mtgen evaluate`, then those logged in training."""

TENSOR_MEANINGS = {
    "latent": "standard normal; the smaller, the less diverse. The predictor's latent reconstructs its image",
    "condition_class": "class number",
    "condition_labels": "1 for every class that should be in the image",
    "condition_caption": "tokens, 0 after the end",
    "condition_sound": "log-mel spectrogram, -1 (silence) to 1",
    "condition_image": "the predictor's `embedding` of an image that the samples should resemble",
    "condition_layout": "one-hot mask",
    "condition_boxes": "1 where a box of the class covers the pixel's center",
    "condition_domain": "number of a data set of the mixture",
    "image": "-1 to 1",
    "mask": "probability of every mask class",
    "box_maps": "center heat map of each class, then width and height times the heat of the hottest class",
    "boxes": "x0, y0, x1, y1 as fractions of the sides, class, score; sorted by score, rows of zeros are empty",
    "embedding": "in the representation space that all conditions share",
}
"""Meaning of the values of each tensor."""


def load_metrics(folder: Path) -> tuple[str, int, dict[str, float]]:
    """Load the latest metrics on data that was not trained on from a run's journal.

    Returns:
        What they were measured on as a title, number of images seen, and the metrics by name; empty if there are none.
    """
    for begin, title in METRIC_TITLES.items():
        found: dict[str, float] = {}
        images = 0
        for row in read_journal(folder):
            some = {name.removeprefix(begin): value for name, value in row.values.items() if name.startswith(begin)}
            found |= some
            images = row.images if some else images
        if found:
            return title, images, found
    return "", 0, {}


def model_card(
    model: Model, weights: AveragedWeights, run: Path, picture: str | None, graphs: Graphs, opset: int
) -> str:
    """The whole text, as Markdown.

    Args:
        run: folder of the run, whose journal has the metrics.
        picture: file name of the samples, if the model generates.
        graphs: the exported ONNX files.
        opset: version of the ONNX operator set.
    """
    parts = [f"# {model.config.name}", f"A model trained with mtgen: {DESCRIPTION}"]
    if picture:
        parts.append(f"![Samples of the model]({picture})")
    parts.append(_facts(model, weights))
    title, images, metrics = load_metrics(run)
    if metrics:
        values = {name: f"{value:.4f}" for name, value in metrics.items()}
        parts.append(f"## {title} at {images:,} images seen\n\n{_table(('metric', 'value'), values)}")
    parts.append(
        "## Usage\n\n"
        "```python\nimport mtgen\n\nmodel = mtgen.load('FOLDER')  # this folder\nmodel.predict('photo.png').rows\n```"
    )
    if model.config.generates:
        parts.append(
            "`model.sample(n=16).save('samples')` generates images. "
            "On the command line, `mtgen sample`, `predict` and `translate` accept this folder."
        )
    if graphs:
        parts += _graph_tables(graphs, opset)
    return "\n\n".join(parts) + "\n"


def _facts(model: Model, weights: AveragedWeights) -> str:
    card, (height, width) = model.card, model.size
    facts = {
        "images": f"{width}x{height} pixels, {'gray' if model.channels == 1 else 'RGB'}",
        "tasks": ", ".join(task.name for task in model.networks.tasks),
        "conditions": ", ".join(model.conditions) or "none",
        "classes": ", ".join(card.classes),
        "mask classes": ", ".join(card.mask_classes),
        "trained on": card.name + (f" ({card.source})" if card.source else ""),
        "license of the data": card.licence,
        "images seen": f"{weights.images:,}",
    }
    backbone = model.config.discriminator.backbone
    if backbone is not None:
        facts["pretrained backbone"] = "; ".join(f"{name}: {text}" for name, text in backbone_facts(backbone).items())
    return _table(("", ""), {name: value for name, value in facts.items() if value})


def _graph_tables(graphs: Graphs, opset: int) -> Iterator[str]:
    """An introduction, then one table for each file."""
    yield (
        f"## ONNX (operator set {opset}, any batch size B)\n\n"
        "The files need `onnxruntime` and NumPy only. Each condition has an input `*_given` that says in which rows it "
        "applies; where it does not, pass zeros and `False`. The class names are metadata of the files "
        "(`classes` and `mask_classes`, as JSON)."
    )
    for name, (inputs, outputs) in graphs.items():
        rows = {f"`{n}`": (f"input, {shape}", TENSOR_MEANINGS.get(n, "")) for n, shape in inputs.items()}
        rows |= {f"`{n}` ": (f"output, {shape}", TENSOR_MEANINGS.get(n, "")) for n, shape in outputs.items()}
        table = _table(("tensor", "shape", "meaning"), {n: " | ".join(cells) for n, cells in rows.items()})
        yield f"`{name}`\n\n{table}"


def _table(columns: tuple[str, ...], rows: Mapping[str, str]) -> str:
    head = f"| {' | '.join(columns)} |\n|{'-|' * len(columns)}\n"
    return head + "\n".join(f"| {name} | {value} |" for name, value in rows.items())
