"""Reconstruction: the trunk with a posterior head encodes an image and the generator decodes it, as in a VAE."""

import torch
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, TaskSettings
from mtgen.networks.discriminator import Discriminator
from mtgen.schema import Canvas, Condition, Prediction
from mtgen.tasks.base import DiscriminatorContext, GeneratorContext, LossDict, StepContext, Task, TaskFeatures


@TASKS.register("reconstruction")
class Reconstruction(Task):
    """Negative evidence lower bound with an L1 likelihood, and a distance of the discriminator's features.

    Sources: Kingma and Welling 2014; Larsen et al. 2016 (VAE-GAN); Kingma et al. 2016 (free bits).

    The discriminator's step trains the posterior through the frozen generator, the generator's step trains the
    decoding. Only images that the augmentation left unchanged take part, so that the generator does not learn the
    augmentation.
    """

    class Settings(TaskSettings):
        weight: float = Field(0.1, ge=0, description="factor of the task's losses; 0 switches it off")
        kl: float = Field(
            2e-4, ge=0, description="weight of the KL divergence from the prior, summed over the latent's dimensions"
        )
        free_bits: float = Field(0.0, ge=0, description="KL divergence per dimension that costs nothing, in nats")
        warmup: int = Field(0, ge=0, description="images over which the weight of the KL divergence rises from 0")
        features: float = Field(
            0.0, ge=0, description="weight of the distance in the trunk's lowest features; 0 saves its cost"
        )

        @property
        def needs_generator(self) -> bool:
            return True

    requests_canvases = True

    def head(self) -> nn.Module:
        return nn.Linear(self.sizes.summary, 2 * self.sizes.latent)

    def posterior(self, discriminator: Discriminator, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Trunk features -> mean and log variance, each `[B,Z]` float32."""
        mean, log_variance = discriminator.heads[self.name](discriminator.summary(levels)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)

    @staticmethod
    def _l1(context: StepContext, canvas: Canvas) -> Tensor:
        difference = (canvas.image - context.original.image[context.plain]).abs()
        return context.mean(difference.mean(dim=(1, 2, 3)), "plain")

    def discriminator_losses(self, context: DiscriminatorContext, features: TaskFeatures) -> LossDict:
        mean, log_variance = self.posterior(context.discriminator, [features.image_only[0][context.plain]])
        latent = mean + (log_variance / 2).exp() * context.posterior_noise
        canvas = context.generator(latent, context.condition.rows(context.plain))
        return {
            "l1": self._l1(context, canvas),
            "kl": self.settings.kl * context.mean(self._divergence(context, mean, log_variance), "plain"),
        }

    def _divergence(self, context: StepContext, mean: Tensor, log_variance: Tensor) -> Tensor:
        """`[P]` KL divergence from the prior, in nats, with free bits and warm-up."""
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        divergence = kl.clamp_min(self.settings.free_bits).sum(dim=1)
        if not self.settings.warmup:
            return divergence
        return divergence * (context.plain_position / self.settings.warmup).clamp(max=1).to(divergence)

    def generator_request(self, context: StepContext, real_features: list[Tensor]) -> tuple[Tensor, Condition] | None:
        with torch.no_grad():
            mean, log_variance = self.posterior(context.discriminator, [real_features[0][context.plain]])
        return mean + (log_variance / 2).exp() * context.posterior_noise, context.condition.rows(context.plain)

    def discriminator_part(self, context: GeneratorContext, canvas: Canvas) -> Canvas | None:
        return Canvas(canvas.image) if self.settings.features else None

    def generator_losses(self, context: GeneratorContext, features: TaskFeatures) -> LossDict:
        if not self.settings.features:
            return {}
        difference = (features.submitted[0] - context.real_features[0][context.plain]).square().mean((1, 2, 3))
        return {"features": self.settings.features * context.mean(difference, "plain")}

    def canvas_losses(self, context: GeneratorContext, canvas: Canvas) -> LossDict:
        return {"l1": self._l1(context, canvas)}

    def predict(self, discriminator: Discriminator, levels: list[Tensor], prediction: Prediction) -> None:
        prediction.posterior = self.posterior(discriminator, levels)
