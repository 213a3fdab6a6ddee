"""Snapshots of a run that trains: pictures and quick metrics, at regular intervals."""

from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from mtgen.config import Config
from mtgen.data.validation import open_training, open_validation
from mtgen.evaluation.evaluate import evaluate
from mtgen.evaluation.splits import MAX_PROMPT_SAMPLES, SplitBatches, evaluation_prompts
from mtgen.models.model import Model
from mtgen.models.sampling import balanced_labels, class_prompts, generate
from mtgen.networks.center_maps import decode_canvas
from mtgen.schema import Batch, Canvas, DatasetCard, Prediction, Prompt
from mtgen.tracking.journal import snapshot_name
from mtgen.utils import counter_rng
from mtgen.visualization import grids
from mtgen.visualization.layers import GridPanel, LayeredGrid, write_layered_grid

GRID_ROWS = 8
"""Samples per class in the grid of samples."""
MAX_GRID_CLASSES = 10
"""Classes in the grid of samples, and domains in the grid of translations."""
NUM_PICTURED_SAMPLES = 32
"""Validation samples in the other grids, the same in every snapshot."""
SNAPSHOT_SAMPLES = 2_000
"""Generated images requested for the quick metrics; `evaluate` reduces them to `QUICK_SAMPLES`."""
PICTURED_CONDITIONS = ("labels", "caption", "sound", "image", "layout")
"""Conditions that have a grid of their own; that of classes is the grid of samples."""

RenderedGrid = tuple[Image, LayeredGrid]
"""A grid as one picture, and in layers for the report."""


class Snapshots:
    """Pictures with a fixed seed, and quick metrics, always of the same samples: the first `evaluate.snapshot_samples`.

    Args:
        config: the run's configuration; pictures go to `samples/` in its folder.
        device: device that decodes validation samples. Training samples, of which metrics keep some, are decoded on the
            CPU.
        threads: number of threads that decode.
    """

    def __init__(self, config: Config, device: str = "cpu", threads: int = 1) -> None:
        self.config = config
        self.device = device
        self.threads = threads
        self.limit = config.evaluate.snapshot_samples
        self.validation = open_validation(config.data)
        self.train = open_training(config.data)
        self._prompts: Prompt | None = None

    def __call__(self, model: Model, images: int) -> tuple[dict[str, float], list[Path]]:
        """The averaged model after a number of images -> numbers by name, and the files of the pictures."""
        if self._prompts is None:  # they depend on the data alone
            self._prompts = evaluation_prompts(model, self._validation_batches(min(self.limit, MAX_PROMPT_SAMPLES)))
        report = evaluate(
            model,
            self._validation_batches(self.limit),
            # read again wherever they are needed: decoded, they would take 1.6 GB at 256x256
            SplitBatches(self.config, self.train, self.limit, threads=self.threads),
            samples=SNAPSHOT_SAMPLES,
            seed=self.config.seed,
            prompts=self._prompts,
            quick=True,
        )
        folder = self.config.folder / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, (picture, layers) in self._grids(model).items():
            path = folder / f"{images:09d}-{name}.png"
            picture.save(path)
            picture.save(folder / f"latest-{name}.png")
            write_layered_grid(self.config.folder, images, name, layers, model.card)
            paths.append(path)
        return {snapshot_name(name): value for name, value in report.items()}, paths

    def _validation_batches(self, limit: int) -> SplitBatches:
        return SplitBatches(self.config, self.validation, limit, device=self.device, threads=self.threads)

    def _grids(self, model: Model) -> dict[str, RenderedGrid]:
        """Every grid of a snapshot, by the name of its files."""
        batch: Batch = next(iter(self._validation_batches(NUM_PICTURED_SAMPLES))).to(model.device)
        found = {
            "grid": sample_grid(model, self.config.seed),
            "reading": prediction_grid(batch, model.predict(batch.image), model.card),
        }
        if (reconstructions := reconstruction_grid(model, batch)) is not None:
            found["reconstruction"] = reconstructions
        found |= condition_grids(model, batch, self.config)
        if (translations := translation_grid(model, batch, self.config.seed)) is not None:
            found["translation"] = translations
        return found


def sample_grid(model: Model, seed: int, rows: int = GRID_ROWS) -> RenderedGrid:
    """Samples from the same latents in every snapshot; of the first classes where the run is conditioned on them."""
    conditioned = "class" in model.conditions or "labels" in model.conditions
    classes = list(range(min(len(model.card.classes), MAX_GRID_CLASSES))) if conditioned else []
    labels = balanced_labels(rows * max(len(classes), 8), classes)
    canvas = Canvas.cat([part for part, _ in generate(model, class_prompts(model, labels), seed, "grid")])
    boxes = None if canvas.boxes is None else decode_canvas(canvas.boxes)
    names = [model.card.classes[label] if label >= 0 else "" for label in labels.tolist()]
    panel = GridPanel("generated", canvas.image, _mask_classes(canvas), boxes)
    layers = LayeredGrid("Samples from the same latents", [panel], names)
    return grids.sample_grid(canvas, labels, model.card, boxes=boxes), layers


def prediction_grid(batch: Batch, prediction: Prediction, card: DatasetCard) -> RenderedGrid:
    """Validation images with their labels, beside the same images with the predictions."""
    true_mask = batch.mask if batch.present["mask"].any() else None
    predicted_mask = None if prediction.mask_logits is None else prediction.mask_logits.argmax(1)
    panels = [
        GridPanel("ground truth", batch.image, true_mask, batch.boxes),
        GridPanel("prediction", batch.image, predicted_mask, prediction.boxes),
    ]
    captions, marks = grids.class_names(batch, card), [""] * len(batch)
    if prediction.class_logits is not None and card.classes:
        predicted = [card.classes[number] for number in prediction.class_logits.argmax(1).tolist()]
        pairs = list(zip(captions, predicted, strict=True))
        marks = ["" if not true else "right" if true == name else "wrong" for true, name in pairs]
        captions = [name if not true or true == name else f"{name}, not {true}" for true, name in pairs]
    layers = LayeredGrid("Predictions on validation images", panels, captions, marks)
    return grids.prediction_grid(batch, prediction, card), layers


def reconstruction_grid(model: Model, batch: Batch) -> RenderedGrid | None:
    """Validation images beside their reconstructions; `None` where the run does not reconstruct images."""
    labels = torch.where(batch.present["class"], batch.label, -1)
    reconstruction = model.reconstruct(batch.image, Prompt.of_classes(labels))
    if reconstruction is None:
        return None
    panels = [GridPanel("original", batch.image), GridPanel("reconstruction", reconstruction.image)]
    layers = LayeredGrid("Reconstructions of validation images", panels)
    return grids.reconstruction_grid(batch.image, reconstruction.image), layers


def condition_grids(model: Model, shown: Batch, config: Config) -> dict[str, RenderedGrid]:
    """For each condition: images conditioned on it alone, taken from validation samples; always of the same latents."""
    found = {}
    for name in (name for name in PICTURED_CONDITIONS if name in model.conditions):
        prompt = model.prompt_from_batch(shown, name)
        rows = prompt.given[name].nonzero().flatten()
        if not len(rows):
            continue
        batch = shown.rows(rows.cpu())
        latent = counter_rng.normal(config.seed, f"picture {name}", batch.position, (model.latent_size,), model.device)
        canvas = model.sample(prompt.rows(rows), latent)
        title, words = f"conditioned on the {name} alone", _condition_words(batch, name, config, model)
        generated = GridPanel("generated", canvas.image, _mask_classes(canvas))
        seen: Tensor | None = None
        panels = [generated]
        if name == "image":
            seen, panels = batch.image, [GridPanel("condition", batch.image), generated]
        elif name == "layout":
            seen, panels = batch.mask, [GridPanel("condition", None, batch.mask), generated]
        found[f"asked-{name}"] = (
            grids.condition_grid(title, words, seen, canvas, model.card),
            LayeredGrid(title.capitalize(), panels, words),
        )
    return found


def _mask_classes(canvas: Canvas) -> Tensor | None:
    return None if canvas.mask is None else canvas.mask.argmax(1)


def _condition_words(batch: Batch, name: str, config: Config, model: Model) -> list[str]:
    """The text above each image: its caption, its labels, or the class of its recording; "" for images and layouts.

    The tokens of a trained tokenizer cannot be decoded here, so the class of the captioned image takes their place.
    """
    if name == "caption" and batch.caption is not None and config.data.tokenizer is None:
        return grids.caption_texts(batch)
    if name == "labels" and batch.labels is not None:
        return [
            "+".join(model.card.classes[number] for number in row.nonzero().flatten().tolist()) or "nothing"
            for row in batch.labels
        ]
    return grids.class_names(batch, model.card) if name in ("caption", "sound") else [""] * len(batch)


def translation_grid(model: Model, shown: Batch, seed: int, rows: int = GRID_ROWS) -> RenderedGrid | None:
    """Validation images translated into the first domains; `None` where the run does not translate images."""
    kind = model.translates
    if kind is None:
        return None
    batch = shown.rows(torch.arange(min(rows, len(shown))))
    latent = counter_rng.normal(seed, "picture translation", batch.position, (model.latent_size,), model.device)
    translated = []
    domains = model.card.classes if kind == "class" else model.card.domains
    for number, name in enumerate(domains[:MAX_GRID_CLASSES]):
        target, given = torch.full_like(batch.label, number), torch.ones_like(batch.label, dtype=torch.bool)
        canvas = model.translate(batch.image, Prompt(len(batch), {kind: target}, {kind: given}), latent)
        if canvas is not None:
            translated.append((name, canvas.image))
    if not translated:
        return None
    panels = [GridPanel("original", batch.image), *(GridPanel(name, image) for name, image in translated)]
    return grids.translation_grid(batch.image, translated), LayeredGrid("Translations of validation images", panels)
