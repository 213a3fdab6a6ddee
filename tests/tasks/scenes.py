"""Hand-made scenes for the tasks: small random networks, random samples, and what a step would have laid out."""

from typing import Any

import torch
import torch.nn.functional as F
import toy
from torch import Tensor

from mtgen.config import Config
from mtgen.model import Networks, build
from mtgen.schema import Batch, Canvas, Condition
from mtgen.tasks.base import Scene, Task, Views
from mtgen.training.layout import lay_out


def networks(config: Config) -> Networks:
    """As the trainer builds them, but with the layers that start at zero at work."""
    made, random = build(config, toy.CARD), torch.Generator().manual_seed(4)
    for network in (made.generator, made.side):
        for parameter in network.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return made


def scene(config: Config, made: Networks, batch: Batch | None = None) -> Scene:
    """The scene of a batch without augmentation; generated samples are random canvases."""
    layout = lay_out(config, toy.batch(0, 16) if batch is None else batch, config.augment.probability)
    rows, random = layout.batch, torch.Generator().manual_seed(5)
    size, latent = len(rows), made.generator.latent
    drawn = torch.randn(size, 2, 8, 8, generator=random).softmax(dim=1)
    laid_out = Scene(
        batch=rows,
        original=rows,
        condition=Condition(torch.randn(size, 8, generator=random)),
        real=Canvas(rows.image, F.one_hot(rows.mask.clamp(max=2), 3)[..., :2].permute(0, 3, 1, 2).float(), layout.shown),
        reading=layout.reading,
        plain=layout.plain,
        penalised=layout.penalised,
        discriminator=made.side.discriminator,
        generator=made.generator,
        noise=torch.randn(len(layout.plain), latent, generator=random),
        sigma=0.01,
        counts=layout.counts,
    )
    laid_out.fake = Canvas(torch.rand(size, 1, 8, 8, generator=random) * 2 - 1, drawn, layout.shown)
    return laid_out


def near(laid_out: Scene, canvas: Canvas, random: torch.Generator) -> Canvas:
    """The penalised rows with noise on all that is seen of them."""
    part = canvas.map(lambda x: x[laid_out.penalised])
    assert part.mask is not None
    noised = [x + laid_out.sigma * torch.randn(x.shape, generator=random, dtype=x.dtype) for x in (part.image, part.mask)]
    return Canvas(noised[0], noised[1], part.shown)


def views(laid_out: Scene, *canvases: Canvas) -> Views:
    """A task's views of one forward of the trunk over the canvases."""
    features = laid_out.discriminator.trunk(Canvas.cat(list(canvases)))
    return Views([level[: laid_out.reading] for level in features], features[0][laid_out.reading :])


def discriminator_views(laid_out: Scene, seed: int = 6) -> Views:
    """As in the discriminator's step: real, generated, and both with noise."""
    random = torch.Generator().manual_seed(seed)
    return views(laid_out, laid_out.real, laid_out.fake, near(laid_out, laid_out.real, random), near(laid_out, laid_out.fake, random))


def task(made: Networks, name: str) -> Any:
    """The task of that name."""
    found: list[Task] = [task for task in made.tasks if task.name == name]
    return found[0]


def unlabelled(batch: Batch) -> Batch:
    """The batch without a class or a mask anywhere."""
    none: dict[str, Tensor] = {name: torch.zeros_like(has) for name, has in batch.present.items()}
    return Batch(
        batch.position, batch.image, torch.zeros_like(batch.label), torch.full_like(batch.mask, 255), none, batch.step_position, none
    )
