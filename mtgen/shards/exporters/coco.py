"""coco: images by split, with COCO's JSON files of instances and captions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtgen.config import ConfigSection
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.annotated import BACKGROUND
from mtgen.shards.export import EXPORTERS, ExportedSample, Exporter
from mtgen.shards.instances import Instance, instances
from mtgen.shards.mask_outlines import outlines, parts

WITHOUT_LABELS = "neither boxes nor a mask, so they are left out of the instances (COCO cannot say 'unknown')"
WITHOUT_BOX = "parts of the mask in no box, which become objects with their bounds as box"
OTHER_LABELS = "labels of classes without a box, which COCO cannot hold"
CLASS_ONLY = "a class of the image, which COCO cannot hold"
UNKNOWN = "pixels of unknown class without an object, which become background"
SOUNDS = "a sound, which COCO cannot hold"


class CocoExportOptions(ConfigSection):
    """Options of the format `coco`: none."""


@EXPORTERS.register("coco")
class CocoExporter(Exporter):
    """SPLIT/KEY.jpg, annotations/instances_SPLIT.json and annotations/captions_SPLIT.json.

    A part of an object without holes is a polygon along the edges of its pixels; objects with holes are run lengths.
    Pixels of unknown class are a crowd of the class of the first object, since crowds are what readers ignore. Source
    of the format: https://cocodataset.org/#format-data.
    """

    Options = CocoExportOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        names = dict.fromkeys([*self.card.classes, *(name for name in self.card.mask_classes if name != BACKGROUND)])
        self.category = {name: number for number, name in enumerate(names, 1)}
        self.images: dict[str, list[dict[str, Any]]] = {split: [] for split in self.card.splits}
        self.labeled: dict[str, list[dict[str, Any]]] = {split: [] for split in self.card.splits}
        self.annotations: dict[str, list[dict[str, Any]]] = {split: [] for split in self.card.splits}
        self.captions: dict[str, list[dict[str, Any]]] = {split: [] for split in self.card.splits}

    def remake(self, out: Path) -> list[str]:
        """The recipe `coco`."""
        return ["coco", f"root={out}"]

    def add(self, sample: ExportedSample) -> None:
        """Write the image and note its annotations."""
        data, suffix = sample.upright()
        name = f"{sample.key}.{suffix}"
        self.write(f"{sample.split}/{name}", data)
        number = len(self.images[sample.split]) + 1
        image = {"id": number, "file_name": name, "width": sample.width, "height": sample.height}
        self.images[sample.split].append(image)
        if sample.caption is not None:
            captions = self.captions[sample.split]
            captions.append({"id": len(captions) + 1, "image_id": number, "caption": sample.caption})
        self.notices.update([SOUNDS] if sample.sound is not None else [])
        if sample.boxes is None and sample.mask is None:
            self.notices.update([WITHOUT_LABELS, *([CLASS_ONLY] if sample.label is not None else [])])
            return
        self.labeled[sample.split].append(image)
        found = instances(sample.boxes, sample.mask, self.card.classes, self.card.mask_classes)
        for item in found:
            self._annotate(sample.split, number, item.name, item.box, _segmentation(item))
        self._note_lost(sample, found)
        if sample.mask is not None and (unknown := sample.mask == IGNORE_INDEX).any():
            if found:
                rows, columns = np.flatnonzero(unknown.any(1)), np.flatnonzero(unknown.any(0))
                bounds = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
                self._annotate(sample.split, number, found[0].name, bounds, _run_lengths(unknown), crowd=True)
            else:
                self.notices.update([UNKNOWN])

    def _note_lost(self, sample: ExportedSample, found: list[Instance]) -> None:
        """Count what the annotations of a sample do not say."""
        names = {item.name for item in found}
        if sample.boxes is not None and any(not item.boxed for item in found):
            self.notices.update([WITHOUT_BOX])
        if {self.card.classes[label] for label in sample.labels or []} - names:
            self.notices.update([OTHER_LABELS])
        if sample.label is not None and names != {self.card.classes[sample.label]}:
            self.notices.update([CLASS_ONLY])

    def _annotate(
        self,
        split: str,
        image: int,
        name: str,
        box: tuple[float, float, float, float],
        segmentation: Any,
        crowd: bool = False,
    ) -> None:
        x0, y0, x1, y1 = box
        area = _area(segmentation)
        self.annotations[split].append(
            {
                "id": len(self.annotations[split]) + 1,
                "image_id": image,
                "category_id": self.category[name],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0) if area is None else area,
                "iscrowd": int(crowd),
                "segmentation": segmentation,
            }
        )

    def finish(self) -> None:
        """Write the JSON files."""
        info = {"description": f"{self.card.name}, exported by mtgen", "source": self.card.source}
        licenses = [{"id": 1, "name": self.card.licence, "url": ""}] if self.card.licence else []
        categories = [{"id": number, "name": name, "supercategory": ""} for name, number in self.category.items()]
        for split in self.images:
            common = {"info": info, "licenses": licenses}
            content: dict[str, Any] = common | {"images": self.labeled[split], "categories": categories}
            content["annotations"] = self.annotations[split]
            self.write(f"annotations/instances_{split}.json", json.dumps(content))
            if self.captions[split]:
                content = common | {"images": self.images[split], "annotations": self.captions[split]}
                self.write(f"annotations/captions_{split}.json", json.dumps(content))


def _segmentation(item: Instance) -> Any:
    """Polygons, or run lengths if the object has holes or no visible pixel; empty if its pixels are not known."""
    if item.region is None:
        return []
    traced = [outlines(part, left, top) for left, top, part in parts(item.region)]
    if not traced or any(len(found) > 1 for found in traced):
        return _run_lengths(item.region)
    return [[coordinate for point in found[0] for coordinate in point] for found in traced]


def _run_lengths(region: NDArray[np.bool_]) -> dict[str, Any]:
    """Run lengths in column order, outside first."""
    flat = region.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(region.shape), "counts": [0, *counts] if flat[0] else counts}


def _area(segmentation: Any) -> float | None:
    """Pixels of polygons without holes, or of run lengths; `None` if there are none."""
    if isinstance(segmentation, dict):
        return float(sum(segmentation["counts"][1::2]))
    if not segmentation:
        return None
    points = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
    doubled = (x @ np.roll(y, -1) - np.roll(x, -1) @ y for x, y in (part.T for part in points))
    return float(sum(abs(value) for value in doubled)) / 2
