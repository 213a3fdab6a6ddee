"""What both training steps share: each is its engine's module, one forward that returns one scalar.

Two DeepSpeed engines live in one process, each with its own step. A step trains one network and uses the other frozen,
which it gets as an argument in a tuple, so that it is not registered as a submodule.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtgen.balancing.gate import Gate
from mtgen.conditions.base import Modality
from mtgen.conditions.layout import mask_layout
from mtgen.config import Config
from mtgen.models.model import DiscriminatorModule
from mtgen.networks import center_maps
from mtgen.networks.generator import Generator
from mtgen.schema import Batch, Canvas, Prompt
from mtgen.tasks.base import LossDict, StepContext, Task, TaskFeatures
from mtgen.training.augment import AdaptiveAugmentation, Warp, sample_warp
from mtgen.training.batch_roles import BatchRoles, assign_roles, is_given
from mtgen.training.compiled import begin_step
from mtgen.training.feature_bundle import FeatureBundle
from mtgen.utils import counter_rng
from mtgen.utils.autocast import autocast

Log = dict[str, Tensor]
"""Detached numbers by name."""


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Freeze the networks within the block: gradients pass through them and none are accumulated."""
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class TrainingStep(nn.Module):
    """Common parts of both steps: from a micro-batch to a `StepContext`, and from losses to one scalar.

    Args:
        config: of the run.
        tasks: those that are switched on.
        gate: at the discriminator's features.
        augmentation: shared by both steps.
    """

    purpose: ClassVar[str]
    """Name of the step; part of the seeds of its random numbers."""

    def __init__(self, config: Config, tasks: list[Task], gate: Gate, augmentation: AdaptiveAugmentation) -> None:
        super().__init__()
        self.config = config
        self.tasks = tasks
        self.gate = gate
        self.augmentation = augmentation
        # Smaller noise is lost in the rounding of half precision, larger noise biases the estimate (measured:
        # docs/decisions.md).
        sigma = config.tasks["generation"].penalty_sigma if config.generates else None
        self.penalty_sigma = sigma or (0.01 if config.precision == "fp32" else 0.1)
        backbone = config.discriminator.backbone
        self.feature_noise = 0.0 if backbone is None else backbone.penalty_noise

    def mixed_precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the autocast context of the run's precision."""
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.precision]
        return autocast(device, dtype, enabled=self.config.precision != "fp32")

    def normals(self, wanted: Mapping[str, tuple[Tensor, tuple[int, ...]]], device: torch.device) -> dict[str, Tensor]:
        """Return standard normal numbers, functions of the seed, the step, their name and positions.

        Args:
            wanted: name -> `[n]` positions, and the shape of the numbers for each.
        """
        requests = [counter_rng.Request(f"{self.purpose} {name}", *own) for name, own in wanted.items()]
        return dict(zip(wanted, counter_rng.normals(self.config.seed, requests, device), strict=True))

    def noise(self, roles: BatchRoles, generator: Generator) -> dict[str, Tensor]:
        """Return the random numbers of a micro-batch that do not depend on what networks compute, by name.

        "latent": `[B,Z]` of the generated samples; "posterior": `[P,Z]` of the plain rows; "pair": `[N,2,Z]` of the
        pairs; in the discriminator's step "grain": `[N,C,H,W]` of the pairs.
        """
        return self.normals(self._noise_shapes(roles, generator), roles.batch.image.device)

    def _noise_shapes(self, roles: BatchRoles, generator: Generator) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
        return {
            "latent": (roles.position, (generator.latent,)),
            "posterior": (roles.plain_position, (generator.latent,)),
            "pair": (roles.pair_position, (2, generator.latent)),
        }

    def warp(self, roles: BatchRoles, kind: str) -> Warp:
        """Return the augmentation of the micro-batch's real or generated samples (`kind`: "real" or "fake")."""
        changed, rows, theta = (roles.more[f"{kind} {part}"] for part in ("changed", "rows", "theta"))
        return Warp(changed, rows, theta, self.config.train.static_shapes)

    def assign_roles(self, batch: Batch, generator: Generator) -> BatchRoles:
        """Assign the roles of a micro-batch, and decide all else that does not depend on values on the device."""
        begin_step(self.config)
        has_boxes = generator.canvas_spec.box_maps > 0
        return assign_roles(
            self.config, batch, self.augmentation.probability, boxes=has_boxes, more=self._decide_on_host
        )

    def _decide_on_host(self, position: Tensor) -> dict[str, Tensor]:
        """`[B]` positions, on the CPU -> the conditions that are given, and the warps."""
        decided = {f"ask {name}": is_given(self.config, self.purpose, name, position) for name in self._conditions}
        if "ask image" in decided:
            chosen, static = decided["ask image"], self.config.train.static_shapes
            decided["ask image rows"] = torch.arange(len(chosen)) if static else chosen.nonzero().flatten()
        for kind in ("real", "fake"):
            warp = sample_warp(self.config, self.augmentation.probability, position, self.purpose, kind)
            decided |= {f"{kind} changed": warp.changed, f"{kind} rows": warp.rows, f"{kind} theta": warp.theta}
        return decided

    @property
    def _conditions(self) -> list[str]:
        return list(self.config.condition_settings())

    def prompt(self, roles: BatchRoles, module: DiscriminatorModule) -> Prompt:
        """Return the samples' conditions; each modality is given independently at random, with its probability."""
        batch = roles.batch
        values, given = {}, {}
        for name in self._conditions:
            if name not in module.conditions.modalities:
                continue
            modality = module.conditions.modality(name)
            given[name] = roles.more[f"ask {name}"]
            if modality.component is not None:
                given[name] = given[name] & batch.present[modality.component]
            value = self._embeddings(roles, module) if name == "image" else modality.value(batch)
            values[name] = self._augmented(name, modality, value, roles.position)
        return Prompt(len(batch), values, given)

    def _augmented(self, name: str, modality: Modality, value: Tensor, position: Tensor) -> Tensor:
        if not modality.random_numbers:
            return value
        purpose = f"{self.purpose} vary {name}"
        random = counter_rng.uniform(self.config.seed, purpose, position, modality.random_numbers, value.device)
        return modality.augment(value, random)

    @torch.no_grad()
    def _embeddings(self, roles: BatchRoles, module: DiscriminatorModule) -> Tensor:
        """`[B,d]` embeddings of the images of rows that are conditioned on them, 0 elsewhere."""
        image, index = roles.batch.image, roles.more["ask image rows"]
        empty = image.new_zeros(len(image), module.conditions.size)
        if not len(index):
            return empty
        found = empty.index_copy(0, index, module.embed(image[index]).to(empty))
        return found * roles.more["ask image"][:, None] if self.config.train.static_shapes else found

    def step_context(
        self, roles: BatchRoles, module: DiscriminatorModule, generator: Generator, noise: Mapping[str, Tensor]
    ) -> StepContext:
        """Augment the real samples, turn them into canvases, and encode their conditions."""
        original = roles.batch
        warp = self.warp(roles, "real")
        batch = replace(original, image=warp(original.image), mask=warp.mask(original.mask))
        spec = generator.canvas_spec
        # bilinearly, as generated masks are: the way in which a mask was warped must not betray it
        mask = warp(mask_layout(original.mask, spec.mask_classes)) if spec.mask_classes else None
        boxes = None
        if spec.box_maps:
            assert original.boxes is not None  # the loader provides boxes
            grid = (original.image.shape[2] // spec.stride, original.image.shape[3] // spec.stride)
            boxes = warp(center_maps.encode(original.boxes, spec.box_maps - 2, grid).canvas())
        prompt = self.prompt(roles, module)
        encoded = module.conditions.encode(prompt)
        return StepContext(
            batch=batch,
            original=original,
            prompt=prompt,
            encoded=encoded,
            condition=module.conditions(prompt, encoded),
            real=Canvas(batch.image, mask, roles.shown, boxes, roles.boxed),
            num_image_only=roles.num_image_only,
            plain=roles.plain,
            plain_position=roles.plain_position,
            partner=roles.partner,
            pairs=roles.pairs,
            penalized=roles.penalized,
            discriminator=module.discriminator,
            condition_encoder=module.conditions,
            generator=generator,
            posterior_noise=noise["posterior"],
            pair_latents=noise["pair"],
            penalty_sigma=self.penalty_sigma,
            feature_noise=self.feature_noise,
            counts=roles.counts,
            weights=roles.weights,
            images_seen=int(original.step_position[0]),
            images_total=self.config.train.images,
        )

    def judged(self, generated: Canvas, roles: BatchRoles, warp: Warp) -> Canvas:
        """Return generated canvases as the discriminator judges them: augmented, and without any trace of softness.

        Labels are shown where those of the real samples are. Generated masks and boxes are made as hard as real ones
        (`tasks.generation.hard_labels`); their gradient is that of the soft ones (Bengio et al. 2013).
        """
        mask, boxes = generated.mask, generated.boxes
        if self.config.tasks["generation"].hard_labels:
            mask = mask if mask is None else _straight_through(one_hot(mask), mask)
            boxes = boxes if boxes is None else _straight_through(center_maps.sharpen(boxes.detach()), boxes)
        return warp.canvas(Canvas(generated.image, mask, roles.shown, boxes, roles.boxed))

    def task_features(
        self,
        context: StepContext,
        canvases: list[Canvas],
        submitted: dict[str, Canvas],
        pretrained: list[Tensor] | None,
    ) -> dict[str, TaskFeatures]:
        """Put canvases through the trunk and its features through the gate; return each task's own view of them.

        With a separate trunk that judges, the step's rows go through that one, past the gate: it has one task only.
        Predictions then need the first canvases only, which are the image-only rows' and those of the same batch.

        Args:
            canvases: the step's own rows.
            submitted: task -> its canvas.
            pretrained: features of all rows, of the submitted canvases last; of those that predictions need where only
                they read features; `None` without a backbone.
        """
        discriminator, sizes = context.discriminator, {name: len(canvas.image) for name, canvas in submitted.items()}
        rows, separate = sum(len(canvas.image) for canvas in canvases), None
        if discriminator.game is not None:
            judged_rows, rows = rows, len(canvases[0].image)
            if discriminator.judge.see_pretrained is None:
                separate = discriminator.judged(Canvas.cat(canvases))
            elif pretrained is not None:
                separate = discriminator.judged(Canvas.cat(canvases), [x[:judged_rows] for x in pretrained])
                pretrained = [torch.cat([x[:rows], x[judged_rows:]]) for x in pretrained]
            canvases = canvases[:1]
        levels = discriminator.trunk(Canvas.cat([*canvases, *submitted.values()]), pretrained)
        bundle = FeatureBundle.of_levels(levels, context.num_image_only, rows - context.num_image_only, sizes)
        found = {name: bundle.task_features(views, name) for name, views in self.gate(*bundle.pack()).items()}
        return {name: replace(features, separate=separate) for name, features in found.items()}

    def total(self, losses: dict[str, LossDict]) -> tuple[Tensor, Log]:
        """Return the weighted sum of all losses, and each of them, weighted and detached, to log."""
        log: Log = {}
        total: Tensor | None = None
        of_tasks: dict[str, Tensor] = {}
        for task in self.tasks:
            for name, loss in losses.get(task.name, {}).items():
                weighted = loss if task.settings.weight == 1 else task.settings.weight * loss
                total = weighted if total is None else total + weighted
                detached = weighted.detach()
                log[f"{task.name}_{name}"] = detached
                of_tasks[task.name] = of_tasks[task.name] + detached if task.name in of_tasks else detached
        self.gate.set_losses(of_tasks)
        assert total is not None  # without generation only predicting tasks are on, and the generator is not trained
        return total, log


def one_hot(mask: Tensor) -> Tensor:
    """Probabilities `[B,M,H,W]` -> 1 for the most likely class of each pixel, 0 for the others."""
    most_likely = mask.max(1, keepdim=True).indices  # argmax over dimension 1 is 15 times slower on a CPU
    return torch.zeros_like(mask).scatter_(1, most_likely, 1.0)


def _straight_through(value: Tensor, soft: Tensor) -> Tensor:
    """Return `value` with the gradient of `soft`."""
    return value + (soft - soft.detach())
