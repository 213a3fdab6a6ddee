"""Alignment: images and all their conditions are embedded in one representation space."""

import math
from itertools import combinations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, TaskSettings
from mtgen.networks.discriminator import Discriminator
from mtgen.schema import Condition, Prediction
from mtgen.tasks.base import DiscriminatorContext, GeneratorContext, LossDict, StepContext, Task, TaskFeatures
from mtgen.utils.autocast import autocast
from mtgen.utils.distributed_math import (
    divide_gradient,
    divide_value,
    gather_rows,
    gather_rows_with_gradient,
    world_size,
)

SIMILARITY_MODALITIES = ("caption", "labels", "class")
"""Modalities that decide whether two samples are positives of each other; the first that both have decides."""

MAX_LOG_SCALE = math.log(100.0)
"""Logarithm of the largest factor of the cosines (Radford et al. 2021)."""


class EmbeddingHead(nn.Module):
    """The trunk's summary -> `[B,d]` of length 1, with a learned factor of the cosines."""

    def __init__(self, summary: int, embedding: int) -> None:
        super().__init__()
        self.embed = nn.Linear(summary, embedding)
        # `[1]`, since DeepSpeed cannot broadcast a tensor without dimensions
        self.sharpness = nn.Parameter(torch.tensor([math.log(10.0)]))

    def forward(self, summary: Tensor) -> Tensor:
        """`[B,S]` summaries of images -> `[B,d]` of length 1."""
        return F.normalize(self.embed(summary).float(), dim=1)


@TASKS.register("alignment")
class Alignment(Task):
    """Contrastive losses between images and modalities and between modalities, and mismatched pairs as negatives.

    The contrastive losses are over the joint batch of all workers. Samples with the same condition (a class, a caption)
    are all positives of each other. Sources: Radford et al. 2021 (CLIP); Khosla et al. 2020 (several positives, L_out);
    Reed et al. 2016 (mismatched pairs).
    """

    class Settings(TaskSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        between: float = Field(
            0.5, ge=0, description="weight of the losses between modalities, relative to those with the image"
        )
        mismatched: float = Field(
            0.5, ge=0, description="weight of real images with another sample's condition, as negatives for the logit"
        )
        agreement: float = Field(
            0.1, ge=0, description="weight of the cosine between a generated image and its conditions"
        )

        @property
        def needs_generator(self) -> bool:
            return self.mismatched > 0  # it uses the logit of the generation task

    def head(self) -> nn.Module:
        return EmbeddingHead(self.sizes.summary, self.sizes.embedding)

    def embed(self, discriminator: Discriminator, levels: list[Tensor]) -> Tensor:
        """Trunk features -> `[B,d]`, of length 1."""
        return discriminator.heads[self.name](discriminator.summary(levels))

    def discriminator_losses(self, context: DiscriminatorContext, features: TaskFeatures) -> LossDict:
        image = self.embed(context.discriminator, features.image_only[:1])
        # every worker gathers the same number of rows: joint rows, which have no embedding, are zeros and take no part
        image = gather_rows_with_gradient(F.pad(image, (0, 0, 0, len(context.batch) - context.num_image_only)))
        image_only = torch.arange(len(context.batch), device=image.device) < context.num_image_only
        positive = self._positives(context)
        log_scale = self._log_scale(context)
        modalities: dict[str, tuple[str, Tensor, Tensor]] = {}
        for name, encoded in context.encoded.items():
            component = context.condition_encoder.modality(name).component
            if component is not None:
                present = gather_rows(context.batch.present[component] & image_only)
                embedding = gather_rows_with_gradient(F.normalize(encoded.pooled.float(), dim=1))
                modalities[name] = component, present, embedding

        def loss(one: Tensor, other: Tensor, present: Tensor, component: str) -> Tensor:
            with autocast(one.device, enabled=False):  # half precision is off by half a logit at the largest scale
                logits = log_scale.exp() * (one @ other.T)
            both_ways = contrast(logits, positive, present) + contrast(logits.T, positive, present)
            return divide_value(context.mean(both_ways / 2, component), world_size())

        losses: LossDict = {
            name: loss(image, other, present, component) for name, (component, present, other) in modalities.items()
        }
        if self.settings.between:
            for (name_a, a), (name_b, b) in combinations(modalities.items(), 2):
                (component_a, present_a, one), (component_b, present_b, other) = a, b
                # Relative to the samples with the rarer component, not to those with both: few of those weigh little.
                rarer = min(component_a, component_b, key=lambda component: context.counts[component])
                between = loss(one, other, present_a & present_b, rarer)
                losses[f"{name_a}_{name_b}"] = self.settings.between * between
        if self.settings.mismatched:
            losses["mismatched"] = self.settings.mismatched * self._mismatched(context, features)
        return losses

    def _log_scale(self, context: StepContext) -> Tensor:
        """`[1]` logarithm of the cosines' factor, of which every worker computes the whole gradient."""
        head = context.discriminator.heads[self.name]
        assert isinstance(head, EmbeddingHead)
        excess = (head.sharpness - MAX_LOG_SCALE).clamp_min(0).detach()  # keeps the gradient that leads back
        return divide_gradient(head.sharpness - excess, world_size())

    @staticmethod
    def _positives(context: StepContext) -> Tensor:
        """`[n,n]` bool over the joint batch: the same sample, or one with the same condition."""
        rows = len(context.batch) * world_size()
        positive = torch.eye(rows, dtype=torch.bool, device=context.batch.image.device)
        undecided = ~positive
        for name in SIMILARITY_MODALITIES:
            if name in context.prompt.values:
                modality = context.condition_encoder.modality(name)
                present = gather_rows(context.batch.present[str(modality.component)])
                both = present[:, None] & present[None] & undecided
                same = modality.same(gather_rows(context.prompt.values[name]))
                assert same is not None
                positive, undecided = positive | (both & same), undecided & ~both
        return positive

    @staticmethod
    def _partner_differs(context: StepContext) -> Tensor:
        """`[B]` bool: rows whose partner has another condition, unless all that it asks for holds for the row too."""
        prompt, partner, pooled = context.prompt, context.partner, context.condition.pooled
        alike = torch.zeros_like(partner, dtype=torch.bool)
        undecided = ~alike
        for name in SIMILARITY_MODALITIES:
            if name in prompt.values:
                modality = context.condition_encoder.modality(name)
                present = context.batch.present[str(modality.component)]
                same = modality.same(prompt.values[name])
                assert same is not None
                both = present & present[partner] & undecided
                alike = alike | (both & same[torch.arange(len(partner), device=partner.device), partner])
                undecided = undecided & ~both
        holds = context.is_conditioned[partner] & alike
        if "domain" in prompt.given:
            domain = prompt.values["domain"]
            holds = holds & ~(prompt.given["domain"][partner] & (domain != domain[partner]))
        return (pooled != pooled[partner]).any(1) & ~holds

    def _mismatched(self, context: StepContext, features: TaskFeatures) -> Tensor:
        """Relativistic: a real image should score higher with its own condition than with its partner's.

        Without any condition too: measured, that teaches the condition. But not where the partner's condition holds.
        """
        pooled = context.condition.pooled
        differs = self._partner_differs(context)
        summary = context.discriminator.summary([features.judged[: len(pooled)]])
        logit = context.discriminator.heads["generation"]
        right, wrong = logit(summary, Condition(pooled)), logit(summary, Condition(pooled[context.partner]))
        return context.mean(F.softplus(wrong - right) * differs, "all")

    def generator_losses(self, context: GeneratorContext, features: TaskFeatures) -> LossDict:
        if not self.settings.agreement:
            return {}
        image = self.embed(context.discriminator, features.image_only[:1])
        condition = F.normalize(context.condition.pooled[context.image_only], dim=1)
        distance = (1 - (image * condition).sum(1)) * context.is_conditioned[context.image_only]
        return {"agreement": self.settings.agreement * context.mean(distance, "image_only")}

    def predict(self, discriminator: Discriminator, levels: list[Tensor], prediction: Prediction) -> None:
        prediction.embedding = self.embed(discriminator, levels)


def contrast(logits: Tensor, positive: Tensor, present: Tensor) -> Tensor:
    """Contrastive loss with several positives: the mean over a row's positives p of -log softmax(logits)[p].

    Source: Khosla et al. 2020, equation 2.

    Args:
        logits: `[n,n]`.
        positive: `[n,n]` bool: which pairs are positives.
        present: `[n]` bool: which rows and columns take part.

    Returns:
        `[n]`, 0 for rows that do not take part.
    """
    lowest = torch.finfo(logits.dtype).min
    log_softmax = logits.masked_fill(~present[None], lowest).log_softmax(1)
    positive = positive & present[None]
    return -(log_softmax.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp_min(1)) * present
