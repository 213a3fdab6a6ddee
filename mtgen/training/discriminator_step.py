"""The step that trains the discriminator: trunk, heads, decoder and condition encoders."""

from collections.abc import Callable

import torch
from torch import Tensor

from mtgen.balancing.gate import Gate
from mtgen.config import Config
from mtgen.models.model import DiscriminatorModule
from mtgen.networks.generator import Generator
from mtgen.schema import Batch, Canvas
from mtgen.tasks.base import DiscriminatorContext, StepContext, Task
from mtgen.training.augment import AdaptiveAugmentation
from mtgen.training.batch_roles import BatchRoles
from mtgen.training.step import Log, TrainingStep
from mtgen.training.teacher import Teacher


class DiscriminatorStep(TrainingStep):
    """Train trunk, heads, decoder and condition encoders; the generator is frozen."""

    purpose = "discriminator"

    def __init__(
        self,
        config: Config,
        tasks: list[Task],
        gate: Gate,
        augmentation: AdaptiveAugmentation,
        module: DiscriminatorModule,
    ) -> None:
        super().__init__(config, tasks, gate, augmentation)
        self.side = module  # the attribute's name is part of parameter names in checkpoints
        self.teacher: Teacher | None = None

    def forward(self, batch: Batch, frozen_networks: tuple[Generator]) -> tuple[Tensor, Log]:
        """A micro-batch and the frozen generator -> one scalar, and detached numbers to log."""
        (generator,) = frozen_networks
        roles = self.assign_roles(batch, generator)
        with self.mixed_precision(roles.batch.image.device):
            context = self._context(roles, generator)
            canvases = [context.real, *self._generated_and_noisy(context, roles)]
            submitted = {
                task.name: canvas for task in self.tasks if (canvas := task.discriminator_canvases(context)) is not None
            }
            pretrained = self._pretrained(context, canvases, submitted, roles)
            features = self.task_features(context, canvases, submitted, pretrained)
            return self.total(
                {task.name: task.discriminator_losses(context, features[task.name]) for task in self.tasks}
            )

    def _context(self, roles: BatchRoles, generator: Generator) -> DiscriminatorContext:
        """Return the real samples and, if the run generates, the generated ones."""
        noise = self.noise(roles, generator)
        real = self.step_context(roles, self.side, generator, noise)
        fake = None
        if self.config.generates:
            with torch.no_grad():
                generated = generator(noise["latent"], real.condition)
                fake = self.judged(generated, roles, self.warp(roles, "fake"))
        pseudo = None
        if self.teacher is not None:
            batch = roles.batch
            pseudo = self.teacher(batch.image, self.warp(roles, "real"), int(batch.step_position[0]))
        return DiscriminatorContext(
            **vars(real),
            fake=fake,
            pseudo=pseudo,
            pair_images=noise["grain"],
            observe_logit_gap=self.augmentation.observe_logit_gap,
        )

    def _noise_shapes(self, roles: BatchRoles, generator: Generator) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
        grain = roles.pair_position, tuple(roles.batch.image.shape[1:])
        return super()._noise_shapes(roles, generator) | {"grain": grain}

    def _generated_and_noisy(self, context: DiscriminatorContext, roles: BatchRoles) -> list[Canvas]:
        """Return the generated canvases and, for finite differences, noisy copies of the penalized rows."""
        if context.fake is None:
            return []
        if self.config.tasks["generation"].penalty == "exact":
            return [context.fake]
        return [context.fake, *self._noisy(context, {"real": context.real, "fake": context.fake}, roles)]

    def _pretrained(
        self, context: DiscriminatorContext, canvases: list[Canvas], submitted: dict[str, Canvas], roles: BatchRoles
    ) -> list[Tensor] | None:
        """Pretrained features of all rows that need them; those of noisy rows are the clean ones with noise.

        Noise of the image would go through the network, whose gradient for pixels is a thousand times too steep.
        """
        discriminator = context.discriminator
        if discriminator.backbone is None:
            return None
        judges = discriminator.judge.see_pretrained is not None
        clean = [canvases[0], *(canvases[1:2] if judges else []), *submitted.values()]
        found = discriminator.backbone(torch.cat([canvas.image for canvas in clean]))
        if len(canvases) < 4 or not judges:
            return found
        rows = len(context.batch)
        noisy = {
            f"features {kind} {level}": features[begin : begin + rows][context.penalized]
            for level, features in enumerate(found)
            for kind, begin in (("real", 0), ("fake", rows))
        }
        shapes = {name: (roles.penalized_position, tuple(x.shape[1:])) for name, x in noisy.items()}
        noise = self.normals(shapes, roles.batch.image.device)
        for name, x in noisy.items():
            noisy[name] = x + self.feature_noise * context.penalty_sigma * noise[name].to(x.dtype)
        return [
            torch.cat(
                [
                    features[: 2 * rows],
                    noisy[f"features real {level}"],
                    noisy[f"features fake {level}"],
                    features[2 * rows :],
                ]
            )
            for level, features in enumerate(found)
        ]

    def _noisy(self, context: StepContext, canvases: dict[str, Canvas], roles: BatchRoles) -> list[Canvas]:
        """Return the penalized rows with a little noise on all components that the discriminator sees."""
        rows = {kind: canvas.map(lambda x: x[context.penalized]) for kind, canvas in canvases.items()}
        shapes = {f"{name} {kind}": tuple(x.shape[1:]) for kind, own in rows.items() for name, x in own.components()}
        wanted = {name: (roles.penalized_position, shape) for name, shape in shapes.items()}
        noise = self.normals(wanted, roles.batch.image.device)

        def add_noise(kind: str) -> Callable[[Tensor, str], Tensor]:
            return lambda x, name: x + context.penalty_sigma * noise[f"{name} {kind}"]

        return [own.map_generated(add_noise(kind)) for kind, own in rows.items()]
