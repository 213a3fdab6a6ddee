"""Detection: read boxes as centers with sizes; the centers that the generator draws should be those that are read in its image."""

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
from mtgen.tasks.base import LossDict, StepContext, Task, TaskFeatures, TaskSizes


class CenterHead(nn.Module):
    """Decoder's features `[B,D,H,W]` -> center logits `[B,K,h,w]`, sizes and offsets `[B,2,h,w]` in 0 to 1, on cells of `stride` pixels."""

    def __init__(self, decoder: int, classes: int, stride: int) -> None:
        super().__init__()
        self.classes = classes
        self.stride = stride
        self.mix = Conv2d(decoder, decoder, 3, padding=1)
        self.out = Conv2d(decoder, classes + 4, 1, gain=0.1)

    def forward(self, dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B,decoder,H,W]` -> logits of the centers `[B,K,h,w]`, sizes `[B,2,h,w]` and offsets `[B,2,h,w]`, both 0 to 1."""
        x = self.out(activate(self.mix(activate(F.avg_pool2d(dense, self.stride))))).float()
        heat, size, offset = x.split([self.classes, 2, 2], dim=1)
        return heat + INITIAL_CENTER_LOGIT, size.sigmoid(), offset.sigmoid()


@TASKS.register("detection")
class Detection(Task):
    """Focal loss on centers, L1 on sizes and offsets, of real images that the augmentation left alone.

    Source: Zhou et al. 2019 (CenterNet).

    A sample's losses are divided by its number of boxes (at least 1); sizes and offsets are shares of the image's sides and of a cell.
    """

    class Settings(TaskSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        stride: int = Field(2, ge=1, description="pixels of a cell of the maps, along each side")
        size: float = Field(5.0, ge=0, description="weight of the sizes' error beside the centers'")
        agreement: float = Field(
            0.1, ge=0, description="weight of the agreement between drawn centers and those read in the drawn image"
        )
        distillation: float = Field(
            0.2,
            ge=0,
            description="weight with which drawn centers are taught those read; the image learns nothing by it",
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
            raise ConfigError(
                f"tasks.{name}.stride={settings.stride}: has to divide the resolution, {sizes.size[0]}x{sizes.size[1]}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of the maps, down and across."""
        return self.sizes.size[0] // self.settings.stride, self.sizes.size[1] // self.settings.stride

    def head(self) -> nn.Module:
        return CenterHead(self.sizes.decoder, self.sizes.classes, self.settings.stride)

    def canvas_spec(self, drawing: CanvasSpec) -> CanvasSpec:
        return replace(drawing, box_maps=self.sizes.classes + 2, stride=self.settings.stride)

    def maps(self, discriminator: Discriminator, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Trunk features -> center logits, sizes, offsets; see `CenterHead`."""
        return discriminator.heads[self.name](discriminator.dense(features))

    def discriminator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        assert scene.original.boxes is not None  # the loader was asked for boxes
        rows = scene.plain
        target = encode(scene.original.boxes[rows], self.sizes.classes, self.grid)
        logits, size, offset = self.maps(scene.discriminator, [level[rows] for level in views.reading])
        boxes = target.here.sum((1, 2, 3)).clamp_min(1)
        present = scene.batch.present["boxes"][rows] / boxes

        def mean(values: Tensor) -> Tensor:
            return scene.mean(values * present, "plain boxes")

        return {
            "centers": mean(focal(logits, target)),
            "sizes": self.settings.size * mean(((size - target.size).abs() * target.here).sum((1, 2, 3))),
            "offsets": mean(((offset - target.offset).abs() * target.here).sum((1, 2, 3))),
        }

    def generator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        """Squared difference of drawn and read maps; where boxes were asked for as a layout, of drawn and asked ones too.

        The agreement alone, strong enough to make drawn boxes right, would bend images and masks to it: so most of it, `distillation`,
        reaches only what is drawn (Hinton et al. 2015: a teacher's output as the target). Of generated images that the augmentation left
        alone: boxes are read in such images only, and turning an image makes its boxes larger than their drawn sizes say.
        """
        drawn = scene.fake.boxes
        if drawn is None or not (self.settings.agreement or self.settings.distillation):
            return {}
        reading = slice(scene.reading)
        unchanged = scene.unaugmented[reading]
        logits, size, _ = self.maps(scene.discriminator, views.reading)
        heat = logits.sigmoid()
        read = torch.cat([heat, size * heat.amax(1, keepdim=True)], dim=1)

        def apart(teacher: Tensor) -> Tensor:
            return scene.mean((teacher - drawn[reading]).square().sum((1, 2, 3)) * unchanged, "reading")

        losses = {}
        if self.settings.agreement:
            losses["agreement"] = self.settings.agreement * apart(read)
        if self.settings.distillation:
            losses["distillation"] = self.settings.distillation * apart(read.detach())
        if self.settings.agreement and "boxes" in scene.prompt.given:
            assert scene.original.boxes is not None
            asked = encode(scene.original.boxes[reading], self.sizes.classes, self.grid).canvas()
            given = scene.prompt.given["boxes"][reading] & unchanged
            difference = (drawn[reading] - asked).square() + (read - asked).square()
            losses["layout"] = self.settings.agreement * scene.mean(difference.sum((1, 2, 3)) * given, "boxes")
        return losses

    def predict(self, discriminator: Discriminator, features: list[Tensor], prediction: Prediction) -> None:
        logits, size, offset = self.maps(discriminator, features)
        prediction.boxes = decode(logits.sigmoid(), size, offset)
