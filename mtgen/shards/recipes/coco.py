"""coco: images with the boxes, masks and captions of COCO's JSON files; image files are stored unchanged."""

from pathlib import Path, PurePosixPath

import numpy as np

from mtgen.errors import DataError
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.annotated import BACKGROUND, SPLIT_ORDER
from mtgen.shards.coco_file import CocoOptions, InstancesFile
from mtgen.shards.coco_layout import find_coco_files, has_images, images_of
from mtgen.shards.input_files import key_of
from mtgen.shards.input_names import LeftAlone
from mtgen.shards.listing import CERTAIN, LIKELY, Listing, Proposal
from mtgen.shards.recipe import RECIPES, Recipe
from mtgen.shards.write import Sample


@RECIPES.register("coco")
class CocoRecipe(Recipe):
    """One sample per image of the instances files, with boxes, labels, mask and the first caption.

    Classes are the categories in the order of their ids, numbered from 0; those of several files are united by their
    names. Source of the format: https://cocodataset.org/#format-data.
    """

    Options = CocoOptions
    licence = ""

    def __init__(self, options: CocoOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.parts = [InstancesFile(part, seed) for part in self._part_options()]
        self.classes = list(dict.fromkeys(name for part in self.parts for name in part.classes))
        masked = any(part.mask_classes for part in self.parts)
        self.mask_classes = [BACKGROUND, *self.classes] if masked else []
        self._refuse_repeated_images()
        self.counts: dict[str, list[tuple[int, int]]] = {}
        for split in SPLIT_ORDER:
            counts = [(number, part.splits[split]) for number, part in enumerate(self.parts) if split in part.splits]
            if counts:
                self.counts[split] = counts
        for part in self.parts:
            self.notices += part.notices
            self.faults += part.faults
        self.sources = [part.sources for part in self.parts]
        self.source = "; ".join(part.source for part in self.parts)

    def _refuse_repeated_images(self) -> None:
        """Raise `DataError` if two files of instances list the same image: which of them is right?"""
        listed: dict[Path, str] = {}
        for part in self.parts:
            for image in (image for images in part.images.values() for image in images):
                if (other := listed.setdefault(part.root / image.file_name, part.path.name)) != part.path.name:
                    raise DataError(
                        f"root={self.options.root}: {other} and {part.path.name} both list {image.file_name}; give "
                        "images= and instances= of one of them"
                    )

    def _part_options(self) -> list[CocoOptions]:
        """Options of each file of instances."""
        if self.options.root is None:
            return [self.options]
        root = Path(self.options.root).resolve()
        if not root.is_dir():
            raise DataError(f"root={self.options.root}: the folder does not exist; give the one of the data set")
        found = find_coco_files(root, self.left_alone)
        common = {"masks": self.options.masks}
        return [
            CocoOptions(
                images=str(files.images),
                instances=str(files.instances),
                captions=str(files.captions) if files.captions else None,
                **common,
                **({"split": files.split} if files.split else {"test": self.options.test}),
            )
            for files in found
        ]

    @classmethod
    def detect(cls, listing: Listing) -> list[Proposal]:
        """A folder with JSON files of instances, or one such file."""
        try:
            if listing.path.is_file():
                if listing.path.suffix.lower() != ".json" or not has_images(listing.path):
                    return []
                images = images_of(listing.path, listing.root)
                options = {"images": str(images), "instances": str(listing.path)}
                return [Proposal(options, "instances in COCO's format", CERTAIN)]
            found = find_coco_files(listing.path, LeftAlone())
        except DataError:
            return []
        names = [str(files.instances.relative_to(listing.path)) for files in found]
        if len({(files.images, files.split) for files in found}) == len(found):
            return [Proposal({"root": str(listing.path)}, f"instances in COCO's format: {', '.join(names)}", CERTAIN)]
        return [  # several files of the same images, of which one is to be chosen
            Proposal(
                {"images": str(files.images), "instances": str(files.instances)}, f"{name} in COCO's format", LIKELY
            )
            for files, name in zip(found, names, strict=True)
        ]

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: sum(count for _, count in counts) for split, counts in self.counts.items()}

    def _locate(self, split: str, number: int) -> tuple[InstancesFile, int]:
        """The file of instances that a sample is in, and its number there."""
        for part, count in self.counts[split]:
            if number < count:
                return self.parts[part], number
            number -= count
        raise IndexError(number)

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        part, number = self._locate(split, number)
        return part.origin(split, number)

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one image; with several files, its key has the folder of its images."""
        part, number = self._locate(split, number)
        sample = part.make(split, number)
        if len(self.parts) > 1:
            sample.key = key_of(
                f"{part.root.name}/{PurePosixPath(part.images[split][number].file_name).with_suffix('')}"
            )
        if part.classes != self.classes:
            table = np.array([self.classes.index(name) for name in part.classes], np.int64)
            sample.labels = sorted(int(table[label]) for label in sample.labels or [])
            sample.boxes = [[*box[:4], int(table[int(box[4])])] for box in sample.boxes or []]
            if sample.mask is not None:
                values = np.full(IGNORE_INDEX + 1, IGNORE_INDEX)
                values[0], values[1 : len(table) + 1] = 0, table + 1
                sample.mask = values[sample.mask].astype(np.uint8)
        return sample
