"""Classification: predict the class of an image; that of a generated image should be its condition."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS
from mtgen.networks.discriminator import Discriminator
from mtgen.schema import Prediction
from mtgen.tasks.base import (
    DiscriminatorContext,
    GeneratorContext,
    LossDict,
    SelfTrainingSettings,
    StepContext,
    Task,
    TaskFeatures,
)
from mtgen.tasks.weak_labels import classes_in_mask, name_pairs, single_class

SURE_CLASS = 0.95
"""Probability from which a predicted class is a label for self-training (Sohn et al. 2020, FixMatch)."""


@TASKS.register("classification")
class Classification(Task):
    """Cross-entropy on real labeled images and, with weight `agreement`, on generated ones (Odena et al. 2017)."""

    class Settings(SelfTrainingSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        agreement: float = Field(
            0.1, ge=0, description="weight of the generated image's predicted class being the sample's"
        )
        implied: float = Field(
            1.0,
            ge=0,
            description="weight of the class that a mask or boxes of a single class tell, for images without a class",
        )
        generated: float = Field(
            0.0,
            ge=0,
            description="weight of generated images as examples of the class that they were generated for, where the "
            "prediction agrees",
        )
        smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")

        @property
        def needs(self) -> str:
            return "class"

        @property
        def metric(self) -> str:
            return "test/class_accuracy"

    def head(self) -> nn.Module:
        return nn.Linear(self.sizes.summary, self.sizes.classes)

    def logits(self, discriminator: Discriminator, levels: list[Tensor]) -> Tensor:
        """Trunk features -> `[B,K]` float32."""
        return discriminator.heads[self.name](discriminator.summary(levels)).float()

    def class_prediction(self, discriminator: Discriminator, levels: list[Tensor]) -> Tensor:
        return self.logits(discriminator, levels).log_softmax(1)

    def _losses(self, context: StepContext, logits: Tensor) -> Tensor:
        """`[R]` cross-entropies of the image-only rows, 0 where the class is unknown."""
        rows, smoothing = context.image_only, self.settings.smoothing
        losses = F.cross_entropy(logits, context.batch.label[rows], reduction="none", label_smoothing=smoothing)
        return losses * context.batch.present["class"][rows]

    def discriminator_losses(self, context: DiscriminatorContext, features: TaskFeatures) -> LossDict:
        logits = self.logits(context.discriminator, features.image_only)
        losses = {"cross_entropy": context.mean(self._losses(context, logits), "class")}
        if self.settings.generated and context.fake is not None:
            losses["generated"] = self.settings.generated * self._generated(context, features)
        if self.settings.self_training:
            losses["self_training"] = self.settings.self_training * self._self_training(context, logits)
        return losses | (self._implied(context, logits) if self.settings.implied else {})

    def _generated(self, context: DiscriminatorContext, features: TaskFeatures) -> Tensor:
        """The cross-entropy of generated images with the class that was given, where it is the predicted one."""
        first = len(context.batch)
        lowest = features.lowest[first : first + context.num_image_only]
        logits, label = self.logits(context.discriminator, [lowest]), context.batch.label[context.image_only]
        given = context.prompt.given["class"][context.image_only] if "class" in context.prompt.given else False
        use = given & (logits.argmax(1) == label)
        return context.mean(F.cross_entropy(logits, label, reduction="none") * use, "image_only")

    def _self_training(self, context: DiscriminatorContext, logits: Tensor) -> Tensor:
        if context.pseudo is None or context.pseudo.classes is None:
            return logits.new_zeros(())
        probability, label = context.pseudo.classes[context.image_only].max(1)
        use = (probability > SURE_CLASS) & ~context.batch.present["class"][context.image_only]
        return context.mean(F.cross_entropy(logits, label, reduction="none") * use, "image_only")

    def _implied(self, context: DiscriminatorContext, logits: Tensor) -> LossDict:
        """The cross-entropy with the only class in a sample's mask, and its only tag, where its class is unknown."""
        rows, batch, original = context.image_only, context.batch, context.original
        told: dict[str, Tensor] = {}
        pairs = name_pairs(self.sizes.class_names, self.sizes.mask_class_names)
        if "mask" in batch.present and pairs:
            told["mask"] = classes_in_mask(original.mask[rows], pairs, self.sizes.classes)
        if "tags" in batch.present and original.labels is not None:
            told["tags"] = original.labels[rows]
        losses = {}
        for component, present in told.items():
            label, is_single = single_class(present)
            use = is_single & batch.present[component][rows] & ~batch.present["class"][rows]
            distance = F.cross_entropy(logits, label, reduction="none") * use
            losses[f"implied_by_{component}"] = self.settings.implied * context.mean(distance, component)
        return losses

    def generator_losses(self, context: GeneratorContext, features: TaskFeatures) -> LossDict:
        """The cross-entropy of conditioned images: the class of an unconditional image is unknown."""
        if not self.settings.agreement:
            return {}
        logits = self.logits(context.discriminator, features.image_only)
        losses = self._losses(context, logits) * context.is_conditioned[context.image_only]
        return {"agreement": self.settings.agreement * context.mean(losses, "class")}

    def predict(self, discriminator: Discriminator, levels: list[Tensor], prediction: Prediction) -> None:
        prediction.class_logits = self.logits(discriminator, levels)
