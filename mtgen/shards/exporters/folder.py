"""folder: images in folders of splits and classes, with all labels beside them; files are stored unchanged."""

import io
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from mtgen.config import ConfigSection
from mtgen.shards.export import EXPORTERS, ExportedSample, Exporter

MAX_NAME_BYTES = 200
"""Longest name of a class folder; file systems allow 255 bytes."""


class FolderExportOptions(ConfigSection):
    """Options of the format `folder`: none."""


@EXPORTERS.register("folder")
class FolderExporter(Exporter):
    """SPLIT/CLASS/KEY.jpg with KEY.mask.png, KEY.txt, KEY.json and KEY.wav beside it: all components, as stored.

    Images without a class are in the folder of their split. classes.txt and mask_classes.txt have the names in order.
    A character that the name of a folder cannot have becomes "_".
    """

    Options = FolderExportOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.folders = _folder_names(self.card.classes)

    def remake(self, out: Path) -> list[str]:
        """The recipe `folder`, with the names of classes and mask classes."""
        options = ["folder", f"images={out}"]
        options += [f"classes={out / 'classes.txt'}"] if self.card.classes else []
        return options + ([f"mask_classes={out / 'mask_classes.txt'}"] if self.card.mask_classes else [])

    def add(self, sample: ExportedSample) -> None:
        """Write the image and its labels."""
        place = sample.split if sample.label is None else f"{sample.split}/{self.folders[sample.label]}"
        stem = f"{place}/{sample.key}"
        self.write(f"{stem}.{sample.suffix}", sample.image)
        if sample.mask is not None:
            file = io.BytesIO()
            Image.fromarray(sample.mask).save(file, "PNG")
            self.write(f"{stem}.mask.png", file.getvalue())
        if sample.labels is not None:
            content: dict[str, Any] = {"width": sample.width, "height": sample.height, "labels": sample.labels}
            if sample.boxes is not None:
                content["boxes"] = [[*corners, int(label)] for *corners, label in sample.boxes]
            self.write(f"{stem}.json", json.dumps(content))
        if sample.caption is not None:
            self.write(f"{stem}.txt", sample.caption + "\n")
        if sample.sound is not None:
            self.write(f"{stem}.{'flac' if sample.sound.startswith(b'fLaC') else 'wav'}", sample.sound)

    def finish(self) -> None:
        """Write the names of the classes."""
        for name, names in (("classes.txt", self.folders), ("mask_classes.txt", self.card.mask_classes)):
            if names:
                self.write(name, "".join(f"{' '.join(name.split())}\n" for name in names))


def _folder_names(classes: list[str]) -> list[str]:
    """A folder name for each class: the class name where possible, and always unique."""
    names: list[str] = []
    for number, name in enumerate(classes):
        safe = re.sub(r"[/\\\0-\x1f]", "_", " ".join(name.split())).encode()[:MAX_NAME_BYTES].decode(errors="ignore")
        safe = f"_{safe}" if not safe or safe.startswith(".") else safe
        taken = {other.casefold() for other in names}
        names.append(f"{safe}_{number}" if safe.casefold() in taken else safe)
    return names
