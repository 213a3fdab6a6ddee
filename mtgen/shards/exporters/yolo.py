"""yolo: images and one text file of boxes or polygons for each, with Ultralytics' data.yaml."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from mtgen.config import ConfigSection
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.annotated import BACKGROUND
from mtgen.shards.export import EXPORTERS, ExportedSample, Exporter
from mtgen.shards.instances import Instance, instances
from mtgen.shards.mask_outlines import joined, outlines, parts

WITHOUT_LABELS = "neither boxes nor a mask, so they are left out (YOLO cannot say 'unknown')"
WITHOUT_OUTLINE = "objects without a visible outline, which are left out of the polygons"
UNKNOWN = "pixels of unknown class, which become background"
OTHERS = "a class, caption or sound, which YOLO cannot hold"


class YoloExportOptions(ConfigSection):
    """Options of the format `yolo`."""

    labels: Literal["boxes", "polygons"] | None = Field(
        None, description="boxes, or polygons from masks; default: boxes if the data set has any"
    )


@EXPORTERS.register("yolo")
class YoloExporter(Exporter):
    """images/SPLIT/KEY.jpg, labels/SPLIT/KEY.txt and data.yaml, for detection or, with polygons, for segmentation.

    Coordinates are fractions of the image's sides. The parts and holes of an object are joined to one polygon by
    bridges without width, as the format has one polygon per object. Source of the format: https://docs.ultralytics.com.
    """

    Options = YoloExportOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.polygons = (self.options.labels or ("boxes" if "boxes" in self.components else "polygons")) == "polygons"
        names = [name for name in self.card.mask_classes if name != BACKGROUND]
        self.names = list(dict.fromkeys([*self.card.classes, *names]))
        self.splits: dict[str, int] = {}

    def remake(self, out: Path) -> list[str]:
        """The recipe `yolo`."""
        return ["yolo", f"data={out}"]

    def add(self, sample: ExportedSample) -> None:
        """Write the image and its text file."""
        if sample.caption is not None or sample.sound is not None or sample.label is not None:
            self.notices.update([OTHERS])
        if sample.mask is None and (self.polygons or sample.boxes is None):
            self.notices.update([WITHOUT_LABELS])
            return
        data, suffix = sample.upright()
        self.write(f"images/{sample.split}/{sample.key}.{suffix}", data)
        boxes_only = not self.polygons and sample.boxes is not None
        mask = None if boxes_only else sample.mask
        found = instances(sample.boxes, mask, self.card.classes, self.card.mask_classes)
        if mask is not None and (mask == IGNORE_INDEX).any():
            self.notices.update([UNKNOWN])
        outlined = [item for item in found if item.region is not None and item.region.any()]
        if self.polygons and len(outlined) < len(found):
            self.notices.update([WITHOUT_OUTLINE])
        lines = [self._polygon(sample, item) for item in outlined] if self.polygons else []
        lines += [] if self.polygons else [self._box(sample, item) for item in found]
        self.write(f"labels/{sample.split}/{sample.key}.txt", "".join(f"{line}\n" for line in lines))
        self.splits[sample.split] = self.splits.get(sample.split, 0) + 1

    def _box(self, sample: ExportedSample, item: Instance) -> str:
        x0, y0, x1, y1 = item.box
        numbers = (
            (x0 + x1) / 2 / sample.width,
            (y0 + y1) / 2 / sample.height,
            (x1 - x0) / sample.width,
            (y1 - y0) / sample.height,
        )
        return " ".join([str(self.names.index(item.name)), *map(str, numbers)])

    def _polygon(self, sample: ExportedSample, item: Instance) -> str:
        assert item.region is not None
        traced = [outline for left, top, part in parts(item.region) for outline in outlines(part, left, top)]
        points = [(x / sample.width, y / sample.height) for x, y in joined(traced)]
        return " ".join([str(self.names.index(item.name)), *(str(value) for point in points for value in point)])

    def finish(self) -> None:
        """Write data.yaml; it has to have train and val, so that another split stands for a missing one."""
        content: dict[str, Any] = {split: f"images/{split}" for split in self.splits}
        if "val" not in content:
            content["val"] = content.get("test") or content.get("train") or next(iter(content.values()), "")
        content.setdefault("train", content["val"])
        content |= {"nc": len(self.names), "names": dict(enumerate(self.names))}
        self.write("data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
