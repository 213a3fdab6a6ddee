"""The step that trains the generator."""

from dataclasses import replace

import torch
from torch import Tensor

from mtgen.balancing.gate import Gate
from mtgen.config import Config
from mtgen.models.model import DiscriminatorModule
from mtgen.networks.generator import Generator
from mtgen.schema import Batch, Canvas, Condition
from mtgen.tasks.base import GeneratorContext, StepContext, Task
from mtgen.training.augment import AdaptiveAugmentation, Warp
from mtgen.training.batch_roles import GENERATOR_STEP, BatchRoles
from mtgen.training.feature_bundle import FeatureBundle
from mtgen.training.step import Log, TrainingStep


class GeneratorStep(TrainingStep):
    """Train the generator through the frozen discriminator."""

    purpose = GENERATOR_STEP

    def __init__(
        self,
        config: Config,
        tasks: list[Task],
        gate: Gate,
        augmentation: AdaptiveAugmentation,
        canvas_gate: Gate,
        generator: Generator,
    ) -> None:
        super().__init__(config, tasks, gate, augmentation)
        self.canvas_gate = canvas_gate
        self.generator = generator

    def forward(self, batch: Batch, frozen_networks: tuple[DiscriminatorModule]) -> tuple[Tensor, Log]:
        """A micro-batch and the frozen discriminator module -> one scalar, and detached numbers to log."""
        (module,) = frozen_networks
        roles = self.assign_roles(batch, self.generator)
        with self.mixed_precision(roles.batch.image.device):
            noise = self.noise(roles, self.generator)
            with torch.no_grad():
                real = self.step_context(roles, module, self.generator, noise)
                pretrained = module.discriminator.pretrained(real.real.image)
                real_features = module.discriminator.trunk(real.real, pretrained)
                real_judged = real_features[0]
                if module.discriminator.game is not None:
                    real_judged = module.discriminator.judged(real.real, pretrained)
            generated, requested = self._generate(real, real_features, noise["latent"])
            generated = self._without_joint_gradient(generated, roles)
            warp = self.warp(roles, "fake")
            judged = self.judged(generated, roles, warp)
            context = GeneratorContext(
                **vars(real),
                fake=_soft(judged, generated, warp),
                fake_unaugmented=~warp.changed,
                real_features=real_features,
                real_judged=real_judged,
            )
            tasks = [task for task in self.tasks if task.name in requested]
            submitted = {
                task.name: part
                for task in tasks
                if (part := task.discriminator_part(context, requested[task.name])) is not None
            }
            discriminator = module.discriminator
            pretrained = discriminator.pretrained(Canvas.cat([judged, *submitted.values()]).image)
            features = self.task_features(context, [judged], submitted, pretrained)
            losses = {task.name: task.generator_losses(context, features[task.name]) for task in self.tasks}
            for task in tasks:
                losses[task.name] |= task.canvas_losses(context, requested[task.name])
            return self.total(losses)

    def _generate(
        self, real: StepContext, real_features: list[Tensor], latents: Tensor
    ) -> tuple[Canvas, dict[str, Canvas]]:
        """Generate all canvases in one forward: those for the discriminator, and those that tasks request, by task.

        The canvas gate arbitrates between the gradients from the discriminator and those of the tasks' losses on
        canvases.
        """
        requests = {"discriminator": (latents, real.condition)}
        for task in self.tasks:
            if (request := task.generator_request(real, real_features)) is not None:
                requests[task.name] = request
        all_latents, conditions = zip(*requests.values(), strict=True)
        canvas = self.generator(torch.cat(all_latents), Condition.cat(list(conditions)))
        bundle = FeatureBundle.of_canvas(canvas, {name: len(rows) for name, (rows, _) in requests.items()})
        views = self.canvas_gate(*bundle.pack())
        canvases = {name: bundle.canvas(views[name], name) for name in requests}
        return canvases.pop("discriminator"), canvases

    def _without_joint_gradient(self, generated: Canvas, roles: BatchRoles) -> Canvas:
        """Detach the images of joint rows unless `joint_gradient`: the joint judgment then trains the labels alone."""
        if self.config.tasks["generation"].joint_gradient:
            return generated
        joint = (roles.shown | roles.boxed)[:, None, None, None]
        return replace(generated, image=torch.where(joint, generated.image.detach(), generated.image))


def _soft(judged: Canvas, generated: Canvas, warp: Warp) -> Canvas:
    """The judged canvases with the soft labels that were generated, and their logits, augmented alike."""
    logits = [None if part is None else warp(part) for part in (generated.mask_logits, generated.box_logits)]
    return replace(Canvas.of_logits(judged.image, *logits), shown=judged.shown, boxed=judged.boxed)
