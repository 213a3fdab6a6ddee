"""Reconstruction: the trunk with a posterior head encodes an image, the one generator decodes it (a VAE in the same two networks)."""

import torch
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, TaskSettings
from mtgen.networks.discriminator import Discriminator
from mtgen.schema import Canvas, Condition, Prediction
from mtgen.tasks.base import LossDict, StepContext, Task, TaskFeatures


@TASKS.register("reconstruction")
class Reconstruction(Task):
    """Negative evidence lower bound with an L1 likelihood, and a distance in the discriminator's features.
    Sources: Kingma and Welling 2014; Larsen et al. 2016 (VAE-GAN); Kingma et al. 2016 (free bits).

    The discriminator's step trains the posterior through the frozen generator, the generator's step trains the decoding. Only images that
    the augmentation left alone take part, so that the generator never learns to draw the augmentation.
    """

    class Settings(TaskSettings):
        weight: float = Field(0.1, ge=0, description="factor of the task's losses; 0 switches it off")
        kl: float = Field(
            2e-4, ge=0, description="weight of the divergence from the prior, summed over the latent's dimensions"
        )
        free_bits: float = Field(0.0, ge=0, description="divergence of a dimension, in nats, that costs nothing")
        warmup: int = Field(0, ge=0, description="images over which the divergence's weight rises from 0")
        features: float = Field(
            0.0, ge=0, description="weight of the distance in the trunk's lowest features, beside L1; 0 saves its cost"
        )

        @property
        def needs_generator(self) -> bool:
            return True

    requests_canvases = True

    def head(self) -> nn.Module:
        return nn.Linear(self.sizes.summary, 2 * self.sizes.latent)

    def posterior(self, discriminator: Discriminator, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Trunk features -> mean and log variance, each `[B,Z]` float32."""
        mean, log_variance = discriminator.heads[self.name](discriminator.summary(features)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)

    @staticmethod
    def _l1(scene: StepContext, canvas: Canvas) -> Tensor:
        difference = (canvas.image - scene.original.image[scene.plain]).abs()
        return scene.mean(difference.mean(dim=(1, 2, 3)), "plain")

    def discriminator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        mean, log_variance = self.posterior(scene.discriminator, [views.reading[0][scene.plain]])
        latent = mean + (log_variance / 2).exp() * scene.noise
        canvas = scene.generator(latent, scene.condition.rows(scene.plain))
        return {
            "l1": self._l1(scene, canvas),
            "kl": self.settings.kl * scene.mean(self._divergence(scene, mean, log_variance), "plain"),
        }

    def _divergence(self, scene: StepContext, mean: Tensor, log_variance: Tensor) -> Tensor:
        """`[P]` KL divergence from the prior, in nats, less what is free, and less in the first images."""
        own = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        divergence = own.clamp_min(self.settings.free_bits).sum(dim=1)
        if not self.settings.warmup:
            return divergence
        return divergence * (scene.plain_position / self.settings.warmup).clamp(max=1).to(divergence)

    def generator_request(self, scene: StepContext) -> tuple[Tensor, Condition] | None:
        assert scene.real_features is not None
        with torch.no_grad():
            mean, log_variance = self.posterior(scene.discriminator, [scene.real_features[0][scene.plain]])
        return mean + (log_variance / 2).exp() * scene.noise, scene.condition.rows(scene.plain)

    def discriminator_part(self, scene: StepContext, canvas: Canvas) -> Canvas | None:
        return Canvas(canvas.image) if self.settings.features else None

    def generator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        if not self.settings.features:
            return {}
        assert scene.real_features is not None
        difference = (views.submitted[0] - scene.real_features[0][scene.plain]).square().mean((1, 2, 3))
        return {"features": self.settings.features * scene.mean(difference, "plain")}

    def canvas_losses(self, scene: StepContext, canvas: Canvas) -> LossDict:
        return {"l1": self._l1(scene, canvas)}

    def predict(self, discriminator: Discriminator, features: list[Tensor], prediction: Prediction) -> None:
        prediction.posterior = self.posterior(discriminator, features)
