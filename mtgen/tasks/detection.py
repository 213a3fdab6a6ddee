"""Detection: predict boxes as centers with sizes; generated boxes should be those predicted from their image."""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS
from mtgen.errors import ConfigError
from mtgen.networks.blocks import Conv2d, activate
from mtgen.networks.center_maps import INITIAL_CENTER_LOGIT, CenterMaps, confident, decode, encode, focal
from mtgen.networks.discriminator import Discriminator
from mtgen.networks.generator import CanvasSpec
from mtgen.networks.prediction_reader import PredictionReader
from mtgen.schema import Prediction
from mtgen.tasks.base import (
    DiscriminatorContext,
    GeneratorContext,
    LossDict,
    ReaderSettings,
    Task,
    TaskFeatures,
    TaskSizes,
)

GENERATED_SIZE_WEIGHT = 20.0
"""Factor of the generated size maps' squared error beside the focal loss of the generated centers."""


SURE_BOX = 0.6
"""Score from which a predicted box is a label for self-training."""


class CenterHead(nn.Module):
    """The decoder's features, and what other tasks predict, -> center logits, sizes and offsets.

    They are on a grid whose cells are `stride` pixels wide.
    """

    def __init__(self, decoder: int, classes: int, stride: int, reader: PredictionReader) -> None:
        super().__init__()
        self.classes = classes
        self.stride = stride
        self.reader = reader
        self.mix = Conv2d(decoder, decoder, 3, padding=1)
        self.out = Conv2d(decoder, classes + 4, 1, gain=0.1)

    def forward(self, dense: Tensor, predicted: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Features `[B,D,H,W]`, and predicted classes `[B,K]` of each source -> three maps.

        Returns:
            Center logits `[B,K,h,w]`, sizes `[B,2,h,w]` and offsets `[B,2,h,w]`, both in 0 to 1.
        """
        x = self.out(activate(self.mix(activate(F.avg_pool2d(dense, self.stride))))).float()
        heat, size, offset = x.split([self.classes, 2, 2], dim=1)
        return self.reader(heat + INITIAL_CENTER_LOGIT, predicted), size.sigmoid(), offset.sigmoid()


@TASKS.register("detection")
class Detection(Task):
    """Focal loss on centers and L1 on sizes and offsets, on real images that the augmentation left unchanged.

    Source: Zhou et al. 2019 (CenterNet).

    A sample's losses are divided by its number of boxes (at least 1). Sizes are fractions of the image's sides, offsets
    of a cell's.
    """

    class Settings(ReaderSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        stride: int = Field(2, ge=1, description="side of a cell of the maps, pixels")
        size: float = Field(5.0, ge=0, description="weight of the sizes' error, relative to the centers'")
        agreement: float = Field(
            0.1, ge=0, description="weight of the agreement of generated centers and those predicted from the image"
        )
        layout: float = Field(
            0.02, ge=0, description="weight of generated and predicted boxes being the given ones, where some are given"
        )
        distillation: float = Field(
            0.2,
            ge=0,
            description="weight of predicted centers as the generated ones' target; without a gradient to the image",
        )

        @property
        def needs(self) -> str:
            return "boxes"

        @property
        def metric(self) -> str:
            return "test/box_ap50"

    dense = True
    reads = ("classification", "tagging")

    def __init__(self, name: str, settings: Settings, sizes: TaskSizes) -> None:
        super().__init__(name, settings, sizes)
        if any(side % settings.stride for side in sizes.size):
            height, width = sizes.size
            raise ConfigError(
                f"tasks.{name}.stride={settings.stride}: does not divide the resolution {height}x{width}; "
                "choose a divisor of both sides"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the maps, cells."""
        return self.sizes.size[0] // self.settings.stride, self.sizes.size[1] // self.settings.stride

    def head(self) -> nn.Module:
        reader = self.prediction_reader(self.sizes.class_names)
        return CenterHead(self.sizes.decoder, self.sizes.classes, self.settings.stride, reader)

    def canvas_spec(self, spec: CanvasSpec) -> CanvasSpec:
        return replace(spec, box_maps=self.sizes.classes + 2, stride=self.settings.stride)

    def maps(self, discriminator: Discriminator, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Trunk features -> center logits, sizes, offsets; see `CenterHead`."""
        predicted = self.source_predictions(discriminator, levels)
        return discriminator.heads[self.name](discriminator.dense(levels), predicted)

    def discriminator_losses(self, context: DiscriminatorContext, features: TaskFeatures) -> LossDict:
        assert context.original.boxes is not None  # the loader provides boxes
        rows = context.plain
        target = encode(context.original.boxes[rows], self.sizes.classes, self.grid)
        maps = self.maps(context.discriminator, [level[rows] for level in features.image_only])
        losses = self._distance(*maps, target) * context.batch.present["boxes"][rows]
        found = {
            name: context.mean(values, "plain boxes")
            for name, values in zip(("centers", "sizes", "offsets"), losses, strict=True)
        }
        if self.settings.self_training:
            found["self_training"] = self.settings.self_training * self._self_training(context, maps)
        return found

    def _self_training(self, context: DiscriminatorContext, maps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        if context.pseudo is None or context.pseudo.boxes is None:
            return maps[0].new_zeros(())
        boxes = context.pseudo.boxes[context.plain]
        label = boxes[..., 4].where(boxes[..., 5] > SURE_BOX, -1)
        target = encode(torch.cat([boxes[..., :4], label[..., None]], -1), self.sizes.classes, self.grid)
        use = (label >= 0).any(1) & ~context.batch.present["boxes"][context.plain]
        return context.mean(self._distance(*maps, target).sum(0) * use, "plain")

    def generator_losses(self, context: GeneratorContext, features: TaskFeatures) -> LossDict:
        """Generated boxes should be those predicted from the image, and both those of a given layout.

        Strong enough to make generated boxes right, the agreement alone would distort images and masks. So most of it
        is distillation, whose gradient reaches the generated maps alone (Hinton et al. 2015: a teacher's output as the
        target). Only generated images that the augmentation left unchanged count: the head is trained on such images,
        and a rotated image has larger boxes than the generated sizes say.

        Generated maps learn boxes by the focal loss, as predicted ones do: of a squared difference the many empty cells
        get nearly all of the gradient, and where a center is uncertain its minimum is below every threshold.
        """
        settings, fake, rows = self.settings, context.fake, context.image_only
        if fake.boxes is None or fake.box_logits is None:
            return {}
        generated, generated_logits = fake.boxes[rows], fake.box_logits[rows]
        unaugmented = context.fake_unaugmented[rows]
        maps = self.maps(context.discriminator, features.image_only)
        heat, size, offset = maps[0].sigmoid(), maps[1], maps[2]
        losses = {}
        if settings.agreement:
            predicted = torch.cat([heat, size * heat.amax(1, keepdim=True)], dim=1)
            difference = (predicted - generated).square().sum((1, 2, 3))
            losses["agreement"] = settings.agreement * context.mean(difference * unaugmented, "unaugmented")
        if settings.distillation:
            found = confident(decode(heat.detach(), size.detach(), offset.detach()))
            distance = self._generated_distance(generated_logits, encode(found, self.sizes.classes, self.grid))
            losses["distillation"] = settings.distillation * context.mean(distance * unaugmented, "unaugmented")
        if settings.layout and "boxes" in context.prompt.given:
            assert context.original.boxes is not None
            layout = encode(context.original.boxes[rows], self.sizes.classes, self.grid)
            distance = self._generated_distance(generated_logits, layout) + self._distance(*maps, layout).sum(0)
            given = context.prompt.given["boxes"][rows] & unaugmented
            losses["layout"] = settings.layout * context.mean(distance * given, "given boxes")
        return losses

    def _distance(self, logits: Tensor, size: Tensor, offset: Tensor, target: CenterMaps) -> Tensor:
        """`[3,B]`: losses of predicted centers, sizes and offsets, per box."""
        boxes = target.here.sum((1, 2, 3)).clamp_min(1)
        sizes = self.settings.size * ((size - target.size).abs() * target.here).sum((1, 2, 3))
        offsets = ((offset - target.offset).abs() * target.here).sum((1, 2, 3))
        return torch.stack([focal(logits, target), sizes, offsets]) / boxes

    @staticmethod
    def _generated_distance(logits: Tensor, target: CenterMaps) -> Tensor:
        """`[B]`: focal loss of generated centers and squared error of generated size maps, per box."""
        boxes = target.here.sum((1, 2, 3)).clamp_min(1)
        sizes = (logits[:, -2:].sigmoid() - target.canvas()[:, -2:]).square().sum((1, 2, 3))
        return (focal(logits[:, :-2], target) + GENERATED_SIZE_WEIGHT * sizes) / boxes

    def predict(self, discriminator: Discriminator, levels: list[Tensor], prediction: Prediction) -> None:
        logits, size, offset = self.maps(discriminator, levels)
        prediction.boxes = decode(logits.sigmoid(), size, offset)
