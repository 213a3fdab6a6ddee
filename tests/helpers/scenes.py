"""Hand-made scenes for the tasks: small random networks, random samples, and what a step would have laid out."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from helpers import toy
from mtgen.config import Config
from mtgen.models.model import Networks, build
from mtgen.networks.center_maps import encode
from mtgen.schema import IGNORE_INDEX, Batch, Canvas
from mtgen.tasks.base import StepContext, Task, TaskFeatures
from mtgen.training.batch_roles import assign_roles
from mtgen.training.steps import build_steps


def networks(config: Config) -> Networks:
    """As the trainer builds them, but with the layers that start at zero at work."""
    made, random = build(config, toy.CARD), torch.Generator().manual_seed(4)
    for network in (made.generator, made.side):
        for parameter in network.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return made


def scene(config: Config, made: Networks, batch: Batch | None = None, seen: str = "discriminator") -> StepContext:
    """The scene of a batch without augmentation, in the step of that name; generated samples are random canvases."""
    drawing = made.generator.canvas_spec
    layout = assign_roles(
        config, toy.batch(0, 16) if batch is None else batch, config.augment.probability, boxes=drawing.box_maps > 0
    )
    rows, random = layout.batch, torch.Generator().manual_seed(5)
    size, latent = len(rows), made.generator.latent
    steps = dict(zip(("discriminator", "generator"), build_steps(config, made), strict=False))
    prompt = steps[seen]._prompt(rows, made.side)
    encoded = made.side.conditions.encode(prompt)
    drawn = torch.randn(size, 2, 8, 8, generator=random).softmax(dim=1)
    boxes = (
        torch.rand(size, drawing.box_maps, 8 // drawing.stride, 8 // drawing.stride, generator=random)
        if drawing.box_maps
        else None
    )
    real_boxes = None
    if boxes is not None:
        assert rows.boxes is not None
        real_boxes = encode(rows.boxes, drawing.box_maps - 2, (8 // drawing.stride, 8 // drawing.stride)).canvas()
    laid_out = StepContext(
        batch=rows,
        original=rows,
        prompt=prompt,
        encoded=encoded,
        condition=made.side.conditions(prompt, encoded),
        real=Canvas(
            rows.image,
            F.one_hot(rows.mask.clamp(max=2), 3)[..., :2].permute(0, 3, 1, 2).float(),
            layout.shown,
            real_boxes,
            layout.boxed,
        ),
        reading=layout.reading,
        plain=layout.plain,
        plain_position=layout.plain_position,
        partner=layout.partner,
        pairs=layout.pairs,
        penalized=layout.penalized,
        side=made.side,
        generator=made.generator,
        noise=torch.randn(len(layout.plain), latent, generator=random),
        pair_noise=torch.randn(len(layout.pairs), 2, latent, generator=random),
        sigma=0.01,
        counts=layout.counts,
    )
    laid_out.fake = Canvas(
        torch.rand(size, 1, 8, 8, generator=random) * 2 - 1, drawn, layout.shown, boxes, layout.boxed
    )
    laid_out.pair_noise_image = torch.randn(len(layout.pairs), *rows.image.shape[1:], generator=random)
    laid_out.unaugmented = torch.arange(size) % 3 > 0
    return laid_out


def near(laid_out: StepContext, canvas: Canvas, random: torch.Generator) -> Canvas:
    """The penalized rows with noise on all that is seen of them."""
    part = canvas.map(lambda x: x[laid_out.penalized])
    return part.map_generated(
        lambda x, name: x + laid_out.sigma * torch.randn(x.shape, generator=random, dtype=x.dtype)
    )


def views(laid_out: StepContext, *canvases: Canvas, own: Canvas | None = None) -> TaskFeatures:
    """A task's views of one forward of the trunk over the canvases, and of one over those that it submitted itself."""
    trunk = laid_out.discriminator.trunk
    features = trunk(Canvas.cat(list(canvases)))
    submitted = [] if own is None else trunk(own)
    return TaskFeatures([level[: laid_out.reading] for level in features], features[0][laid_out.reading :], submitted)


def discriminator_views(laid_out: StepContext, seed: int = 6) -> TaskFeatures:
    """As in the discriminator's step: real, generated, and both with noise."""
    random = torch.Generator().manual_seed(seed)
    return views(
        laid_out,
        laid_out.real,
        laid_out.fake,
        near(laid_out, laid_out.real, random),
        near(laid_out, laid_out.fake, random),
    )


def task(made: Networks, name: str) -> Any:
    """The task of that name."""
    found: list[Task] = [task for task in made.tasks if task.name == name]
    return found[0]


def unlabeled(batch: Batch, *components: str) -> Batch:
    """The batch without those components (all, if none is named) in any sample."""
    out = components or tuple(batch.present)
    present = {name: torch.zeros_like(has) if name in out else has for name, has in batch.present.items()}
    empty: dict[str, Any] = {
        "class": {"label": torch.zeros_like(batch.label)},
        "mask": {"mask": torch.full_like(batch.mask, IGNORE_INDEX)},
        "boxes": {"boxes": toy.NO_BOX.repeat(len(batch), 3, 1), "labels": torch.zeros(len(batch), 3, dtype=torch.bool)},
        "caption": {"caption": torch.zeros(len(batch), 6, dtype=torch.int64)},
        "sound": {"sound": torch.zeros(len(batch), 8, 8)},
    }
    without = {field: value for name in out for field, value in empty[name].items()}
    return replace(batch, **without, present=present, step_present=present)
