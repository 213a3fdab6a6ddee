"""Contexts for tests of single tasks: small random networks, random samples, and what a step passes to a task."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from helpers import toy
from mtgen.config import Config
from mtgen.models.model import Networks, build
from mtgen.networks.center_maps import encode
from mtgen.schema import IGNORE_INDEX, Batch, Canvas
from mtgen.tasks.base import DiscriminatorContext, GeneratorContext, StepContext, Task, TaskFeatures
from mtgen.training.batch_roles import BatchRoles, assign_roles
from mtgen.training.steps import build_steps

PENALTY_SIGMA = 0.01


def networks(config: Config) -> Networks:
    """Networks as the trainer builds them, with layers that start at zero perturbed."""
    made, random = build(config, toy.CARD), torch.Generator().manual_seed(4)
    for network in (made.generator, made.side):
        for parameter in network.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return made


def _roles(config: Config, made: Networks, batch: Batch | None) -> BatchRoles:
    has_boxes = made.generator.canvas_spec.box_maps > 0
    return assign_roles(config, batch or toy.batch(0, 16), config.augment.probability, boxes=has_boxes)


def _context(
    config: Config, made: Networks, roles: BatchRoles, step: str, random: torch.Generator
) -> tuple[StepContext, Canvas]:
    """The context of an unaugmented batch in a step, before generation, and random generated canvases."""
    spec, batch = made.generator.canvas_spec, roles.batch
    d_step, g_step, _ = build_steps(config, made)
    own = {"discriminator": d_step, "generator": g_step}[step]
    prompt = own.prompt(own.assign_roles(batch, made.generator), made.side)
    encoded = made.side.conditions.encode(prompt)
    mask_logits = torch.randn(len(batch), 2, 8, 8, generator=random)
    box_logits = real_boxes = None
    if spec.box_maps:
        assert batch.boxes is not None
        grid = (8 // spec.stride, 8 // spec.stride)
        box_logits = torch.randn(len(batch), spec.box_maps, *grid, generator=random)
        real_boxes = encode(batch.boxes, spec.box_maps - 2, grid).canvas()
    real_mask = F.one_hot(batch.mask.clamp(max=2), 3)[..., :2].permute(0, 3, 1, 2).float()
    context = StepContext(
        batch=batch,
        original=batch,
        prompt=prompt,
        encoded=encoded,
        condition=made.side.conditions(prompt, encoded),
        real=Canvas(batch.image, real_mask, roles.shown, real_boxes, roles.boxed),
        num_image_only=roles.num_image_only,
        plain=roles.plain,
        plain_position=roles.plain_position,
        partner=roles.partner,
        pairs=roles.pairs,
        penalized=roles.penalized,
        discriminator=made.side.discriminator,
        condition_encoder=made.side.conditions,
        generator=made.generator,
        posterior_noise=torch.randn(len(roles.plain), made.generator.latent, generator=random),
        pair_latents=torch.randn(len(roles.pairs), 2, made.generator.latent, generator=random),
        penalty_sigma=PENALTY_SIGMA,
        counts=roles.counts,
        images_seen=0,
        images_total=config.train.images,
    )
    image = torch.rand(len(batch), 1, 8, 8, generator=random) * 2 - 1
    fake = Canvas.of_logits(image, mask_logits, box_logits)
    return context, replace(fake, shown=roles.shown, boxed=roles.boxed)


def discriminator_context(config: Config, made: Networks, batch: Batch | None = None) -> DiscriminatorContext:
    """The context of an unaugmented batch in the discriminator's step; generated samples are random canvases."""
    roles, random = _roles(config, made, batch), torch.Generator().manual_seed(5)
    context, fake = _context(config, made, roles, "discriminator", random)
    shape = roles.batch.image.shape[1:]
    return DiscriminatorContext(
        **vars(context),
        fake=replace(fake, mask_logits=None, box_logits=None),
        pair_images=torch.randn(len(roles.pairs), *shape, generator=random),
    )


def generator_context(config: Config, made: Networks, batch: Batch | None = None) -> GeneratorContext:
    """The context of an unaugmented batch in the generator's step; generated samples are random canvases.

    Every third generated sample counts as augmented.
    """
    roles, random = _roles(config, made, batch), torch.Generator().manual_seed(5)
    context, fake = _context(config, made, roles, "generator", random)
    with torch.no_grad():
        real_features = made.side.discriminator.trunk(context.real)
    unaugmented = torch.arange(len(roles.batch)) % 3 > 0
    counted = unaugmented & (torch.arange(len(roles.batch)) < roles.num_image_only)
    counts = {f"given {name}": int((given & counted).sum()) for name, given in context.prompt.given.items()}
    context = replace(context, counts=context.counts | counts | {"unaugmented": int(counted.sum())})
    return GeneratorContext(
        **vars(context),
        fake=fake,
        fake_unaugmented=unaugmented,
        real_features=real_features,
        real_judged=real_features[0],
    )


def noisy(context: StepContext, canvas: Canvas, random: torch.Generator) -> Canvas:
    """The penalized rows of a canvas, with noise on all visible components."""
    rows = canvas.map(lambda x: x[context.penalized])
    return rows.map_generated(
        lambda x, name: x + context.penalty_sigma * torch.randn(x.shape, generator=random, dtype=x.dtype)
    )


def task_features(context: StepContext, *canvases: Canvas, submitted: Canvas | None = None) -> TaskFeatures:
    """A task's features: the trunk's of the canvases, and of a canvas that the task submitted."""
    trunk, rows = context.discriminator.trunk, context.num_image_only
    levels = trunk(Canvas.cat(list(canvases)))
    own = [] if submitted is None else trunk(submitted)
    return TaskFeatures([level[:rows] for level in levels], levels[0][rows:], own)


def discriminator_features(
    context: DiscriminatorContext, seed: int = 6, submitted: Canvas | None = None
) -> TaskFeatures:
    """A task's features in the discriminator's step: of real, generated, and noisy real and generated canvases."""
    assert context.fake is not None
    random = torch.Generator().manual_seed(seed)
    noisy_real, noisy_fake = noisy(context, context.real, random), noisy(context, context.fake, random)
    return task_features(context, context.real, context.fake, noisy_real, noisy_fake, submitted=submitted)


def task(made: Networks, name: str) -> Any:
    """The task of that name."""
    found: list[Task] = [task for task in made.tasks if task.name == name]
    return found[0]


def unlabeled(batch: Batch, *components: str) -> Batch:
    """The batch without those components (default: without any) in all samples."""
    missing = components or tuple(batch.present)
    present = {name: torch.zeros_like(has) if name in missing else has for name, has in batch.present.items()}
    empty: dict[str, Any] = {
        "class": {"label": torch.zeros_like(batch.label)},
        "mask": {"mask": torch.full_like(batch.mask, IGNORE_INDEX)},
        "boxes": {"boxes": toy.NO_BOX.repeat(len(batch), 3, 1)},
        "tags": {"labels": torch.zeros(len(batch), 3, dtype=torch.bool)},
        "caption": {"caption": torch.zeros(len(batch), 6, dtype=torch.int64)},
        "sound": {"sound": torch.zeros(len(batch), 8, 8)},
    }
    without = {field: value for name in missing for field, value in empty[name].items()}
    return replace(batch, **without, present=present, step_present=present)
