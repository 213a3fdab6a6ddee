"""Detection: predict boxes as centers with sizes; generated boxes should be those predicted from their image."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, TaskSettings
from mtgen.errors import ConfigError
from mtgen.networks.blocks import Conv2d, activate
from mtgen.networks.center_maps import INITIAL_CENTER_LOGIT, decode, encode, focal
from mtgen.networks.discriminator import Discriminator
from mtgen.networks.generator import CanvasSpec
from mtgen.schema import Prediction
from mtgen.tasks.base import DiscriminatorContext, GeneratorContext, LossDict, Task, TaskFeatures, TaskSizes


class CenterHead(nn.Module):
    """The decoder's features -> center logits, sizes and offsets on a grid whose cells are `stride` pixels wide."""

    def __init__(self, decoder: int, classes: int, stride: int) -> None:
        super().__init__()
        self.classes = classes
        self.stride = stride
        self.mix = Conv2d(decoder, decoder, 3, padding=1)
        self.out = Conv2d(decoder, classes + 4, 1, gain=0.1)

    def forward(self, dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B,D,H,W]` -> center logits `[B,K,h,w]`, sizes `[B,2,h,w]` and offsets `[B,2,h,w]`, both in 0 to 1."""
        x = self.out(activate(self.mix(activate(F.avg_pool2d(dense, self.stride))))).float()
        heat, size, offset = x.split([self.classes, 2, 2], dim=1)
        return heat + INITIAL_CENTER_LOGIT, size.sigmoid(), offset.sigmoid()


@TASKS.register("detection")
class Detection(Task):
    """Focal loss on centers and L1 on sizes and offsets, on real images that the augmentation left unchanged.

    Source: Zhou et al. 2019 (CenterNet).

    A sample's losses are divided by its number of boxes (at least 1). Sizes are fractions of the image's sides, offsets
    of a cell's.
    """

    class Settings(TaskSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        stride: int = Field(2, ge=1, description="side of a cell of the maps, pixels")
        size: float = Field(5.0, ge=0, description="weight of the sizes' error, relative to the centers'")
        agreement: float = Field(
            0.1, ge=0, description="weight of the agreement of generated centers and those predicted from the image"
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
        return CenterHead(self.sizes.decoder, self.sizes.classes, self.settings.stride)

    def canvas_spec(self, spec: CanvasSpec) -> CanvasSpec:
        return replace(spec, box_maps=self.sizes.classes + 2, stride=self.settings.stride)

    def maps(self, discriminator: Discriminator, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Trunk features -> center logits, sizes, offsets; see `CenterHead`."""
        return discriminator.heads[self.name](discriminator.dense(levels))

    def discriminator_losses(self, context: DiscriminatorContext, features: TaskFeatures) -> LossDict:
        assert context.original.boxes is not None  # the loader provides boxes
        rows = context.plain
        target = encode(context.original.boxes[rows], self.sizes.classes, self.grid)
        logits, size, offset = self.maps(context.discriminator, [level[rows] for level in features.image_only])
        boxes = target.here.sum((1, 2, 3)).clamp_min(1)
        present = context.batch.present["boxes"][rows] / boxes

        def mean(values: Tensor) -> Tensor:
            return context.mean(values * present, "plain boxes")

        return {
            "centers": mean(focal(logits, target)),
            "sizes": self.settings.size * mean(((size - target.size).abs() * target.here).sum((1, 2, 3))),
            "offsets": mean(((offset - target.offset).abs() * target.here).sum((1, 2, 3))),
        }

    def generator_losses(self, context: GeneratorContext, features: TaskFeatures) -> LossDict:
        """Squared difference of generated and predicted maps, and of both with given boxes.

        Strong enough to make generated boxes right, the agreement alone would distort images and masks. So most of it
        is distillation, whose gradient reaches the generated maps alone (Hinton et al. 2015: a teacher's output as the
        target). Only generated images that the augmentation left unchanged count: the head is trained on such images,
        and a rotated image has larger boxes than the generated sizes say.
        """
        settings, generated = self.settings, context.fake.boxes
        if generated is None or not (settings.agreement or settings.distillation):
            return {}
        rows = context.image_only
        generated, unaugmented = generated[rows], context.fake_unaugmented[rows]
        logits, size, _ = self.maps(context.discriminator, features.image_only)
        heat = logits.sigmoid()
        predicted = torch.cat([heat, size * heat.amax(1, keepdim=True)], dim=1)

        def distance(target: Tensor) -> Tensor:
            return context.mean((target - generated).square().sum((1, 2, 3)) * unaugmented, "image_only")

        losses = {}
        if settings.agreement:
            losses["agreement"] = settings.agreement * distance(predicted)
        if settings.distillation:
            losses["distillation"] = settings.distillation * distance(predicted.detach())
        if settings.agreement and "boxes" in context.prompt.given:
            assert context.original.boxes is not None
            layout = encode(context.original.boxes[rows], self.sizes.classes, self.grid).canvas()
            given = context.prompt.given["boxes"][rows] & unaugmented
            difference = (generated - layout).square() + (predicted - layout).square()
            losses["layout"] = settings.agreement * context.mean(difference.sum((1, 2, 3)) * given, "boxes")
        return losses

    def predict(self, discriminator: Discriminator, levels: list[Tensor], prediction: Prediction) -> None:
        logits, size, offset = self.maps(discriminator, levels)
        prediction.boxes = decode(logits.sigmoid(), size, offset)
