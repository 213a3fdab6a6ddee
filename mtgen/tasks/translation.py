"""Translation: the same two networks generate an image in another domain, and translate it back (cycle consistency)."""

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
from mtgen.tasks.base import (
    DiscriminatorContext,
    GeneratorContext,
    LossDict,
    StepContext,
    Task,
    TaskFeatures,
    TaskSizes,
)


class ContentHead(nn.Module):
    """One level of the trunk -> a spatial latent: the content of an image, independent of its domain."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.out = Conv2d(width, channels, 1)

    def forward(self, level: Tensor) -> Tensor:
        """A level of the trunk `[B,C,h,w]` -> spatial latent `[B,S,h,w]` in -1 to 1."""
        return self.out(activate(level)).float().tanh()


@TASKS.register("translation")
class Translation(Task):
    """Unpaired translation between any number of domains, each a condition of the one generator.

    The trunk encodes an image into a spatial latent, the generator decodes it into any domain. In its own domain an
    image should be reproduced (identity). In its partner's domain it should look real (a relativistic game against the
    partner), and translating it back should reproduce it (cycle). The translated image has its own gradient penalty;
    that of the partner is in generation's loss. Sources: Zhu et al. 2017 (CycleGAN); Choi et al. 2018 (StarGAN: the
    domain as a condition); Huang et al. 2018 (MUNIT: spatial content); Huang et al. 2024 (the relativistic game needs
    both penalties).
    """

    class Settings(TaskSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        domain: Literal["domain", "class"] = Field(
            "domain", description="what the domains are: data sets of a mixture, or classes"
        )
        every: int = Field(2, ge=1, description="one pair of samples in N is translated")
        side: int = Field(
            8, ge=4, description="side of the spatial latent, pixels; the shorter side of one of the networks' levels"
        )
        channels: int = Field(8, ge=1, description="channels of the spatial latent")
        adversarial: float = Field(1.0, ge=0, description="weight of the adversarial loss in the other domain")
        gamma: float = Field(1.0, ge=0, description="weight of the gradient penalty on translated images: gamma/2 R2")
        identity: float = Field(
            3.0, ge=0, description="weight of the L1 distance of an image and its reproduction in its own domain"
        )
        cycle: float = Field(
            3.0, ge=0, description="weight of the L1 distance of an image and its translation there and back"
        )
        keep: float = Field(
            0.5, ge=0, description="weight of a translated image's predicted class being the original's, where known"
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
                f"tasks.{name}.side={settings.side}: no level has this side; possible: {', '.join(map(str, shorter))}"
            )
        if settings.domain not in sizes.conditions:
            raise ConfigError(
                f"tasks.{name}.domain={settings.domain}: is not among the conditions; "
                f"add conditions.{settings.domain}={{}}"
            )
        self.level = shorter.index(settings.side)

    def head(self) -> nn.Module:
        return ContentHead(self.sizes.widths[self.level], self.settings.channels)

    def condition_spec(self, spec: ConditionSpec) -> ConditionSpec:
        return replace(spec, content=self.settings.channels, content_level=self.level)

    def content(self, discriminator: Discriminator, levels: list[Tensor]) -> Tensor:
        """Trunk features -> `[B,S,h,w]`."""
        return discriminator.heads[self.name](levels[self.level])

    def _domains(self, context: StepContext) -> Condition:
        """Return every row's own domain alone as a condition."""
        name = self.settings.domain
        prompt = context.prompt.only(name)
        if name == "class":
            prompt.given["class"] = context.batch.present["class"]
        else:
            prompt.given[name] = torch.ones_like(prompt.given[name])
        return Condition(context.condition_encoder(prompt, {name: context.encoded[name]}).pooled)

    def _differs(self, context: StepContext) -> Tensor:
        """`[N]` bool: pairs of two different domains that are both known."""
        domain, partner = context.prompt.values[self.settings.domain], context.partner[context.pairs]
        differs = domain[context.pairs] != domain[partner]
        if self.settings.domain == "class":
            known = context.batch.present["class"]
            differs = differs & known[context.pairs] & known[partner]
        return differs

    def _decode(self, context: StepContext, content: Tensor, domains: Condition, latent: int) -> Canvas:
        return context.generator(context.pair_latents[:, latent], Condition(domains.pooled, content=content))

    def _l1(self, context: StepContext, image: Tensor) -> Tensor:
        return (image - context.original.image[context.pairs]).abs().mean((1, 2, 3))

    def _logits(self, context: StepContext, lowest: Tensor, domains: Condition) -> Tensor:
        return context.discriminator.heads["generation"](context.discriminator.summary([lowest]), domains)

    def discriminator_canvases(self, context: DiscriminatorContext) -> Canvas | None:
        """The pairs' images translated into their partners' domains, then the same with noise, for the penalty."""
        with torch.no_grad():
            levels = context.discriminator.trunk(Canvas(context.original.image[context.pairs]))
            content = self.content(context.discriminator, levels)
            partners = self._domains(context).rows(context.partner[context.pairs])
            translated = self._decode(context, content, partners, 0).image
            return Canvas(torch.cat([translated, translated + context.penalty_sigma * context.pair_images]))

    def discriminator_losses(self, context: DiscriminatorContext, features: TaskFeatures) -> LossDict:
        settings, domains, partner = self.settings, self._domains(context), context.partner[context.pairs]
        content = self.content(context.discriminator, [level[context.pairs] for level in features.image_only])
        reproduced = self._decode(context, content, domains.rows(context.pairs), 1)
        real = self._logits(context, features.image_only[0][partner], domains.rows(partner))
        fake, noisy = (self._logits(context, x, domains.rows(partner)) for x in features.submitted[0].chunk(2))
        adversarial = F.softplus(fake - real) * self._differs(context)
        squared = ((noisy - fake) / context.penalty_sigma).square()
        return {
            "identity": settings.identity * context.mean(self._l1(context, reproduced.image), "pairs"),
            "adversarial": settings.adversarial * context.mean(adversarial, "pairs"),
            "penalty": settings.adversarial * settings.gamma / 2 * context.mean(squared, "pairs"),
        }

    def generator_request(self, context: StepContext, real_features: list[Tensor]) -> tuple[Tensor, Condition] | None:
        """The pairs' images in their own domains, then in their partners'."""
        with torch.no_grad():
            content = self.content(context.discriminator, [level[context.pairs] for level in real_features])
            domains = self._domains(context)
            pooled = torch.cat([domains.pooled[context.pairs], domains.pooled[context.partner[context.pairs]]])
        latent = torch.cat([context.pair_latents[:, 1], context.pair_latents[:, 0]])
        return latent, Condition(pooled, content=torch.cat([content, content]))

    def discriminator_part(self, context: GeneratorContext, canvas: Canvas) -> Canvas | None:
        """The translated images."""
        return Canvas(canvas.image[len(context.pairs) :])

    def canvas_losses(self, context: GeneratorContext, canvas: Canvas) -> LossDict:
        reproduced = canvas.image[: len(context.pairs)]
        return {"identity": self.settings.identity * context.mean(self._l1(context, reproduced), "pairs")}

    def generator_losses(self, context: GeneratorContext, features: TaskFeatures) -> LossDict:
        settings, discriminator = self.settings, context.discriminator
        pairs, partner = context.pairs, context.partner[context.pairs]
        with torch.no_grad():
            domains = self._domains(context)
            real = self._logits(context, context.real_features[0][partner], domains.rows(partner))
        fake = self._logits(context, features.submitted[0], domains.rows(partner))
        adversarial = F.softplus(real - fake) * self._differs(context)
        back = self._decode(context, self.content(discriminator, features.submitted), domains.rows(pairs), 1)
        losses = {
            "adversarial": settings.adversarial * context.mean(adversarial, "pairs"),
            "cycle": settings.cycle * context.mean(self._l1(context, back.image), "pairs"),
        }
        if settings.keep and "classification" in discriminator.heads and settings.domain != "class":
            logits = discriminator.heads["classification"](discriminator.summary(features.submitted)).float()
            kept = F.cross_entropy(logits, context.batch.label[pairs], reduction="none")
            losses["keep"] = settings.keep * context.mean(kept * context.batch.present["class"][pairs], "pairs")
        return losses

    def predict(self, discriminator: Discriminator, levels: list[Tensor], prediction: Prediction) -> None:
        prediction.content = self.content(discriminator, levels)
