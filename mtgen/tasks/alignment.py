"""Alignment: images and everything that they can be asked for by lie together in the one representation space."""

import math
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, TaskSettings
from mtgen.networks.discriminator import Discriminator
from mtgen.schema import Condition, Prediction
from mtgen.tasks.base import LossDict, StepContext, Task, TaskFeatures

SIMILARITY_MODALITIES = ("caption", "labels", "class")
"""Modalities by which two samples are told to be alike; the first that both have decides."""

MAX_LOG_SCALE = math.log(100.0)
"""Logarithm of the largest factor of the cosines (Radford et al. 2021)."""


class EmbeddingHead(nn.Module):
    """Trunk's summary -> `[B,d]` of length 1, and the factor of the cosines, which is learned."""

    def __init__(self, summary: int, embedding: int) -> None:
        super().__init__()
        self.embed = nn.Linear(summary, embedding)
        self.sharpness = nn.Parameter(
            torch.tensor([math.log(10.0)])
        )  # DeepSpeed cannot broadcast a tensor without dimensions

    def forward(self, summary: Tensor) -> Tensor:
        """`[B,S]` summaries of images -> `[B,d]` of length 1."""
        return F.normalize(self.embed(summary).float(), dim=1)


@TASKS.register("alignment")
class Alignment(Task):
    """Contrastive loss between images and each modality, and between modalities, over the joint batch of all workers, and mismatched
    pairs for the logit.

    Several samples may be asked for by just the same (a class, a caption): all of them are positives of each other.
    Sources: Radford et al. 2021 (CLIP); Khosla et al. 2020 (several positives, L_out); Reed et al. 2016 (mismatched pairs).
    """

    class Settings(TaskSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        between: float = Field(
            0.5, ge=0, description="weight of each two modalities' likeness, beside that of each with the image"
        )
        mismatched: float = Field(
            0.5, ge=0, description="weight of real images with another one's condition, as negatives for the logit"
        )
        agreement: float = Field(0.1, ge=0, description="weight of a generated image's likeness to what was asked for")

        @property
        def needs_generator(self) -> bool:
            return self.mismatched > 0  # pairs for the logit of the generation task

    def head(self) -> nn.Module:
        return EmbeddingHead(self.sizes.summary, self.sizes.embedding)

    def embed(self, discriminator: Discriminator, features: list[Tensor]) -> Tensor:
        """Trunk features -> `[B,d]`, of length 1."""
        return discriminator.heads[self.name](discriminator.summary(features))

    def discriminator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        image = self.embed(scene.discriminator, views.reading[:1])
        missing = len(scene.batch) - scene.reading
        image = AllGatherWithGradient.of(F.pad(image, (0, 0, 0, missing)))
        reading = torch.arange(len(scene.batch), device=image.device) < scene.reading
        alike = self._alike(scene)
        head = scene.discriminator.heads[self.name]
        assert isinstance(head, EmbeddingHead)
        sharpness = head.sharpness.clamp(max=MAX_LOG_SCALE)
        workers = _workers()
        sharpness = (
            sharpness / workers + (1 - 1 / workers) * sharpness.detach()
        )  # every worker computes its whole gradient
        found = {}
        for name, encoded in scene.encoded.items():
            component = scene.side.conditions.modality(name).component
            if component is not None:
                there = all_gather(scene.batch.present[component] & reading)
                found[name] = component, there, AllGatherWithGradient.of(F.normalize(encoded.pooled.float(), dim=1))

        def likeness(one: Tensor, other: Tensor, there: Tensor, component: str) -> Tensor:
            cosine = sharpness.exp() * one @ other.T
            total = scene.mean((contrast(cosine, alike, there) + contrast(cosine.T, alike, there)) / 2, component)
            return total / workers + (1 - 1 / workers) * (total - total.detach())  # its value is this worker's share

        losses: LossDict = {
            name: likeness(image, other, there, component) for name, (component, there, other) in found.items()
        }
        for (name, (component, there, one)), (second, (rival, also, other)) in combinations(found.items(), 2):
            if self.settings.between:
                # A share of the samples with the rarer, not a mean over those with both, so that few of them weigh little.
                rarer = min(component, rival, key=lambda part: scene.counts[part])
                losses[f"{name}_{second}"] = self.settings.between * likeness(one, other, there & also, rarer)
        if self.settings.mismatched:
            losses["mismatched"] = self.settings.mismatched * self._mismatched(scene, views)
        return losses

    @staticmethod
    def _alike(scene: StepContext) -> Tensor:
        """`[n,n]` bool over the joint batch: the same sample, or asked for by just the same."""
        rows = len(scene.batch) * _workers()
        alike = torch.eye(rows, dtype=torch.bool, device=scene.batch.image.device)
        undecided = ~alike
        for name in SIMILARITY_MODALITIES:
            if name in scene.prompt.values:
                modality = scene.side.conditions.modality(name)
                there = all_gather(scene.batch.present[str(modality.component)])
                both = there[:, None] & there[None] & undecided
                same = modality.same(all_gather(scene.prompt.values[name]))
                assert same is not None
                alike, undecided = alike | (both & same), undecided & ~both
        return alike

    def _mismatched(self, scene: StepContext, views: TaskFeatures) -> Tensor:
        """Relativistic: a real image should be likelier with its own condition than with its partner's."""
        pooled = scene.condition.pooled
        differs = (pooled != pooled[scene.partner]).any(1)
        summary = scene.discriminator.summary([views.lowest[: len(pooled)]])
        logit = scene.discriminator.heads["generation"]
        right, wrong = logit(summary, Condition(pooled)), logit(summary, Condition(pooled[scene.partner]))
        return scene.mean(F.softplus(wrong - right) * differs, "all")

    def generator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        if not self.settings.agreement:
            return {}
        image = self.embed(scene.discriminator, views.reading[:1])
        wanted = F.normalize(scene.condition.pooled[: scene.reading], dim=1)
        away = (1 - (image * wanted).sum(1)) * scene.is_conditioned[: scene.reading]
        return {"agreement": self.settings.agreement * scene.mean(away, "reading")}

    def predict(self, discriminator: Discriminator, features: list[Tensor], prediction: Prediction) -> None:
        prediction.embedding = self.embed(discriminator, features)


def contrast(logits: Tensor, alike: Tensor, there: Tensor) -> Tensor:
    """`[n,n]` logits, which pairs are alike, and which rows and columns take part -> `[n]` losses, 0 for rows that do not.

    The mean over a row's positives p of -log softmax(logits)[p]. Source: Khosla et al. 2020, equation 2.
    """
    lowest = torch.finfo(logits.dtype).min
    log_share = logits.masked_fill(~there[None], lowest).log_softmax(1)
    positive = alike & there[None]
    return -(log_share.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp_min(1)) * there


def _workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather(x: Tensor) -> Tensor:
    """`[B,...]` of every worker, one after the other, without gradients; B is the same on all of them."""
    if _workers() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(_workers())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


class AllGatherWithGradient(torch.autograd.Function):
    """The rows of all workers, of which this worker's own carry gradients.

    Every worker computes the loss of the whole joint batch, so that the gradient of its own rows is already whole: nothing is
    exchanged on the way back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """This worker's rows `[n,d]` -> those of all workers in their order, `[N,d]`."""
        ctx.rows = len(x)
        return all_gather(x).clone() if _workers() > 1 else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Of the gradient of all rows, this worker's own."""
        (gradient,) = gradients
        rank = dist.get_rank() if _workers() > 1 else 0
        return gradient[rank * ctx.rows : (rank + 1) * ctx.rows]

    @staticmethod
    def of(x: Tensor) -> Tensor:
        """`[B,...]` -> `[W*B,...]`."""
        return AllGatherWithGradient.apply(x)
