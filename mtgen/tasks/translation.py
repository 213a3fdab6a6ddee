"""Translation: an image is drawn anew in another domain, and back again (cycle consistency), by the same two networks."""

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, TaskSettings
from mtgen.errors import ConfigError
from mtgen.networks.blocks import Conv2d, activate
from mtgen.networks.discriminator import Discriminator
from mtgen.networks.generator import ConditionSpec
from mtgen.schema import Canvas, Condition, Prediction
from mtgen.tasks.base import LossDict, StepContext, Task, TaskFeatures, TaskSizes


class ContentHead(nn.Module):
    """One level of the trunk -> a spatial latent `[B,S,h,w]`, -1 to 1: what is where in an image, whatever its domain."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.out = Conv2d(width, channels, 1)

    def forward(self, level: Tensor) -> Tensor:
        """A level of the trunk `[B,C,h,w]` -> spatial latent `[B,S,h,w]` in -1 to 1."""
        return self.out(activate(level)).float().tanh()


@TASKS.register("translation")
class Translation(Task):
    """Unpaired translation among any number of domains, each a condition of the one generator.

    The trunk encodes an image into a spatial latent, the generator decodes it into any domain. An image should come out as it is in its own
    domain (identity), be likely in its partner's (relativistic, against the partner, with a penalty on the translated image; that on the
    partner is generation's), and come back as it was (cycle).
    Sources: Zhu et al. 2017 (CycleGAN); Choi et al. 2018 (StarGAN: the domain as a condition); Huang et al. 2018 (MUNIT: spatial content);
    Huang et al. 2024 (the relativistic game needs a penalty on both sides).
    """

    class Settings(TaskSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        domain: Literal["domain", "class"] = Field(
            "domain", description="what the domains are: data sets of a mixture, or classes"
        )
        every: int = Field(2, ge=1, description="one pair of samples in so many is translated")
        side: int = Field(
            8, ge=4, description="side of the spatial latent, pixels: that of one of the networks' levels"
        )
        channels: int = Field(8, ge=1, description="channels of the spatial latent")
        adversarial: float = Field(1.0, ge=0, description="weight of being likely in the other domain")
        gamma: float = Field(1.0, ge=0, description="weight of the gradient penalty on translated images: gamma/2 R2")
        identity: float = Field(
            3.0, ge=0, description="weight of the L1 distance of an image drawn anew in its own domain"
        )
        cycle: float = Field(
            3.0, ge=0, description="weight of the L1 distance of an image drawn in another domain and back"
        )
        keep: float = Field(
            0.5,
            ge=0,
            description="weight of the class read in a translated image being that of the original, where known",
        )

        @property
        def needs_generator(self) -> bool:
            return True

    requests_canvases = True

    def __init__(self, name: str, settings: Settings, sizes: TaskSizes) -> None:
        super().__init__(name, settings, sizes)
        shorter = [min(side) for side in sizes.sides]
        if settings.side not in shorter:
            raise ConfigError(
                f"tasks.{name}.side={settings.side}: there is no such level; possible: {', '.join(map(str, shorter))}"
            )
        if settings.domain not in sizes.conditions:
            raise ConfigError(
                f"tasks.{name}.domain={settings.domain}: has to be among the conditions; add conditions.{settings.domain}={{}}"
            )
        self.level = shorter.index(settings.side)

    def head(self) -> nn.Module:
        return ContentHead(self.sizes.widths[self.level], self.settings.channels)

    def condition_spec(self, guidance: ConditionSpec) -> ConditionSpec:
        return replace(guidance, content=self.settings.channels, content_level=self.level)

    def content(self, discriminator: Discriminator, features: list[Tensor]) -> Tensor:
        """Trunk features -> `[B,S,h,w]`."""
        return discriminator.heads[self.name](features[self.level])

    def _domains(self, scene: StepContext) -> Condition:
        """Every row's own domain, and nothing else, as a condition."""
        name = self.settings.domain
        prompt = scene.prompt.only(name)
        if name == "class":
            prompt.given["class"] = scene.batch.present["class"]
        else:
            prompt.given[name] = torch.ones_like(prompt.given[name])
        return Condition(scene.side.conditions(prompt, {name: scene.encoded[name]}).pooled)

    def _other(self, scene: StepContext) -> Tensor:
        """`[N]` bool: pairs of two domains that are both known."""
        domain, partner = scene.prompt.values[self.settings.domain], scene.partner[scene.pairs]
        other = domain[scene.pairs] != domain[partner]
        if self.settings.domain == "class":
            known = scene.batch.present["class"]
            other = other & known[scene.pairs] & known[partner]
        return other

    def _decoded(self, scene: StepContext, content: Tensor, domains: Condition, latent: int) -> Canvas:
        return scene.generator(scene.pair_noise[:, latent], Condition(domains.pooled, content=content))

    def _l1(self, scene: StepContext, image: Tensor) -> Tensor:
        return (image - scene.original.image[scene.pairs]).abs().mean((1, 2, 3))

    def _logits(self, scene: StepContext, lowest: Tensor, domains: Condition) -> Tensor:
        return scene.discriminator.heads["generation"](scene.discriminator.summary([lowest]), domains)

    def discriminator_canvases(self, scene: StepContext) -> Canvas | None:
        """The pairs' images, drawn in their partners' domains, and the same with a little noise, for the penalty."""
        with torch.no_grad():
            features = scene.discriminator.trunk(Canvas(scene.original.image[scene.pairs]))
            content = self.content(scene.discriminator, features)
            partners = self._domains(scene).rows(scene.partner[scene.pairs])
            drawn = self._decoded(scene, content, partners, 0).image
            return Canvas(torch.cat([drawn, drawn + scene.sigma * scene.pair_noise_image]))

    def discriminator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        domains, partner = self._domains(scene), scene.partner[scene.pairs]
        content = self.content(scene.discriminator, [level[scene.pairs] for level in views.reading])
        again = self._decoded(scene, content, domains.rows(scene.pairs), 1)
        real = self._logits(scene, views.reading[0][partner], domains.rows(partner))
        fake, near = (self._logits(scene, lowest, domains.rows(partner)) for lowest in views.submitted[0].chunk(2))
        slope = (near - fake) / scene.sigma
        return {
            "identity": self.settings.identity * scene.mean(self._l1(scene, again.image), "pairs"),
            "adversarial": self.settings.adversarial
            * scene.mean(F.softplus(fake - real) * self._other(scene), "pairs"),
            "penalty": self.settings.adversarial * self.settings.gamma / 2 * scene.mean(slope.square(), "pairs"),
        }

    def generator_request(self, scene: StepContext) -> tuple[Tensor, Condition] | None:
        """The pairs' images in their own domain, then in their partners'."""
        assert scene.real_features is not None
        with torch.no_grad():
            content = self.content(scene.discriminator, [level[scene.pairs] for level in scene.real_features])
            domains = self._domains(scene)
            pooled = torch.cat([domains.pooled[scene.pairs], domains.pooled[scene.partner[scene.pairs]]])
        latent = torch.cat([scene.pair_noise[:, 1], scene.pair_noise[:, 0]])
        return latent, Condition(pooled, content=torch.cat([content, content]))

    def discriminator_part(self, scene: StepContext, canvas: Canvas) -> Canvas | None:
        return Canvas(canvas.image[len(scene.pairs) :])

    def canvas_losses(self, scene: StepContext, canvas: Canvas) -> LossDict:
        again = canvas.image[: len(scene.pairs)]
        return {"identity": self.settings.identity * scene.mean(self._l1(scene, again), "pairs")}

    def generator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        assert scene.real_features is not None
        partner = scene.partner[scene.pairs]
        with torch.no_grad():
            domains = self._domains(scene)
            real = self._logits(scene, scene.real_features[0][partner], domains.rows(partner))
        other = self._other(scene)
        fake = self._logits(scene, views.submitted[0], domains.rows(partner))
        back = self._decoded(scene, self.content(scene.discriminator, views.submitted), domains.rows(scene.pairs), 1)
        losses = {
            "adversarial": self.settings.adversarial * scene.mean(F.softplus(real - fake) * other, "pairs"),
            "cycle": self.settings.cycle * scene.mean(self._l1(scene, back.image), "pairs"),
        }
        if self.settings.keep and "classification" in scene.discriminator.heads and self.settings.domain != "class":
            logits = scene.discriminator.heads["classification"](scene.discriminator.summary(views.submitted)).float()
            kept = F.cross_entropy(logits, scene.batch.label[scene.pairs], reduction="none")
            losses["keep"] = self.settings.keep * scene.mean(kept * scene.batch.present["class"][scene.pairs], "pairs")
        return losses

    def predict(self, discriminator: Discriminator, features: list[Tensor], prediction: Prediction) -> None:
        prediction.content = self.content(discriminator, features)
