"""Alignment: images and all their conditions are embedded in one representation space."""

import math
from dataclasses import dataclass
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
from mtgen.utils.distributed_math import gather_rows, rank

SIMILARITY_MODALITIES = ("caption", "labels", "class")
"""Modalities that decide whether two samples are positives of each other; the first that both have decides."""

IMAGE = "image"
"""Name of the image's embedding beside those of the modalities."""

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

    The contrastive losses are over the joint batch of all workers, of which each computes its own rows. Samples with
    the same condition (a class, a caption) are all positives of each other. Sources: Radford et al. 2021 (CLIP);
    Khosla et al. 2020 (several positives, L_out); Reed et al. 2016 (mismatched pairs).
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
        image = F.pad(image, (0, 0, 0, len(context.batch) - context.num_image_only))
        losses = self._contrasts(context, image)
        if self.settings.mismatched:
            losses["mismatched"] = self.settings.mismatched * self._mismatched(context, features)
        return losses

    def _contrasts(self, context: DiscriminatorContext, image: Tensor) -> LossDict:
        """The losses between the images' embeddings `[B,d]` and each modality, and between modalities."""
        components, vectors = {}, {IMAGE: image}
        for name, encoded in context.encoded.items():
            component = context.condition_encoder.modality(name).component
            if component is not None:
                components[name] = component
                vectors[name] = F.normalize(encoded.pooled.float(), dim=1)
        if not components:
            return {}
        pairs = RowsAndColumns(vectors, self._facts(context, components))
        scale = self._log_scale(context).exp()

        def loss(one: str, other: str, component: str) -> Tensor:
            with autocast(image.device, enabled=False):  # half precision is off by half a logit at the largest scale
                both_ways = pairs.contrast(scale, one, other) + pairs.contrast(scale, other, one)
            return context.mean(both_ways / 2, component)

        losses: LossDict = {name: loss(IMAGE, name, component) for name, component in components.items()}
        if self.settings.between:
            for one, other in combinations(components, 2):
                # Relative to the samples with the rarer component, not to those with both: few of those weigh little.
                rarer = min(components[one], components[other], key=lambda component: context.counts[component])
                losses[f"{one}_{other}"] = self.settings.between * loss(one, other, rarer)
        return losses

    def _log_scale(self, context: StepContext) -> Tensor:
        """`[1]` logarithm of the cosines' factor."""
        head = context.discriminator.heads[self.name]
        assert isinstance(head, EmbeddingHead)
        # the detached excess keeps the gradient that leads back
        return head.sharpness - (head.sharpness - MAX_LOG_SCALE).clamp_min(0).detach()

    @staticmethod
    def _facts(context: StepContext, components: dict[str, str]) -> "RowFacts":
        """What decides which rows take part and which are positives of each other."""
        present = context.batch.present
        image_only = torch.arange(len(context.batch), device=context.batch.image.device) < context.num_image_only
        conditions = {}
        for name in SIMILARITY_MODALITIES:
            if name in context.prompt.values:
                modality = context.condition_encoder.modality(name)
                identity = modality.identity(context.prompt.values[name])
                assert identity is not None
                conditions[name] = present[str(modality.component)], identity
        return RowFacts({name: present[component] & image_only for name, component in components.items()}, conditions)

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
                identity = modality.identity(prompt.values[name])
                assert identity is not None
                both = present & present[partner] & undecided
                alike = alike | (both & (identity == identity[partner]))
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


@dataclass(frozen=True)
class RowFacts:
    """What is compared of rows, beside their embeddings.

    Attributes:
        takes_part: `[n]` bool per modality: the rows that are contrasted by it.
        conditions: per modality that decides about positives, the first that both rows have: `[n]` bool, which rows
            have it, and `[n]` int64, `Modality.identity`.
    """

    takes_part: dict[str, Tensor]
    conditions: dict[str, tuple[Tensor, Tensor]]

    def have(self, *names: str) -> Tensor:
        """`[n]` bool: which rows take part with all of these embeddings; every row has an image."""
        return torch.stack([self.takes_part[name] for name in names if name != IMAGE]).all(0)

    def gathered(self) -> "RowFacts":
        """The facts of the joint batch, by one message; collective."""
        columns = [*self.takes_part.values(), *(part for both in self.conditions.values() for part in both)]
        rows = iter(gather_rows(torch.stack([column.long() for column in columns], 1)).unbind(1))
        takes_part = {name: next(rows).bool() for name in self.takes_part}
        return RowFacts(takes_part, {name: (next(rows).bool(), next(rows)) for name in self.conditions})


class RowsAndColumns:
    """This worker's rows of the matrices that compare each sample of the joint batch with every other.

    Args:
        vectors: `[n,d]` float32 per embedding ("image", or a modality) of this worker's rows.
        facts: about the same rows.
    """

    def __init__(self, vectors: dict[str, Tensor], facts: RowFacts) -> None:
        self.own = vectors
        self.all = dict(zip(vectors, gather_rows(torch.stack([*vectors.values()], 1)).unbind(1), strict=True))
        self.facts, self.all_facts = facts, facts.gathered()
        self.positive = self._positives()

    def _positives(self) -> Tensor:
        """`[n,N]` bool: the same sample, or one with the same condition."""
        rows, columns = len(self.own[IMAGE]), len(self.all[IMAGE])
        number = torch.arange(columns, device=self.own[IMAGE].device)
        positive = number[rank() * rows : (rank() + 1) * rows, None] == number
        undecided = ~positive
        for name, (present, identity) in self.facts.conditions.items():
            all_present, all_identity = self.all_facts.conditions[name]
            both = present[:, None] & all_present & undecided
            positive, undecided = positive | (both & (identity[:, None] == all_identity)), undecided & ~both
        return positive

    def contrast(self, scale: Tensor, query: str, key: str) -> Tensor:
        """`[n]` loss of this worker's `query` vectors against the `key` vectors of all rows that have both."""
        logits = scale * (self.own[query] @ self.all[key].T)
        return contrast(logits, self.positive, self.facts.have(query, key), self.all_facts.have(query, key))


def contrast(logits: Tensor, positive: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Contrastive loss with several positives: the mean over a row's positives p of -log softmax(logits)[p].

    Source: Khosla et al. 2020, equation 2.

    Args:
        logits: `[n,N]`.
        positive: `[n,N]` bool: which pairs are positives.
        rows: `[n]` bool: which rows take part.
        columns: `[N]` bool: which columns take part.

    Returns:
        `[n]`, 0 for rows that do not take part.
    """
    lowest = torch.finfo(logits.dtype).min
    log_softmax = logits.masked_fill(~columns, lowest).log_softmax(1)
    positive = positive & columns
    return -(log_softmax.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp_min(1)) * rows
