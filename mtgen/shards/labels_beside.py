"""Label files beside images: captions, annotations and sounds with the name of their image."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mtgen.data.boxes import ANNOTATION_EXAMPLE
from mtgen.errors import DataError
from mtgen.shards.input_files import read_json, read_text

SOUND_SUFFIXES = (".wav", ".flac")
LABEL_SUFFIXES = (".txt", ".json", *SOUND_SUFFIXES)

MIN_COORDINATES = 4
"""A text with this many numbers in each line, and hardly anything else, has coordinates: a box needs four."""

MIN_NUMERIC_FRACTION = 0.6
"""Of the words of such a line, the fraction of numbers: a class of two words and four numbers has more."""

LABELS_SAMPLED = 100
"""Number of label files of a kind that are read ahead, so that one error stands for all."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)

Content = TypeVar("Content")


def label_files(image: Path) -> list[Path]:
    """The caption, annotation and sounds beside an image."""
    return [path for suffix in LABEL_SUFFIXES if (path := image.with_suffix(suffix)).is_file()]


def coordinates_in(text: str) -> bool:
    """Whether a text is lines of numbers, as in the labels of YOLO, KITTI and DOTA, rather than a caption."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0] == [str(len(lines) - 1)]:  # BBox-Label-Tool begins with the number of boxes
        lines = lines[1:]
    return bool(lines) and all(_is_coordinates(words) for words in lines)


def _is_coordinates(words: Sequence[str]) -> bool:
    numbers = sum(_NUMBER.fullmatch(word) is not None for word in words)
    return numbers >= MIN_COORDINATES and numbers >= MIN_NUMERIC_FRACTION * len(words)


def check_labels(files: Sequence[Path], captions: bool | None = None) -> list[str]:
    """Look at the first label files beside images; returns notices. Files that cannot be read are left to others.

    Args:
        captions: whether texts are captions; `None`: they have to be.

    Raises:
        DataError: texts have coordinates instead of captions, or annotations are those of labelme.
    """
    notices = []
    texts = [path for path in files if path.suffix == ".txt"]
    if captions is False and texts:
        notices.append(f"{len(texts):,} .txt files are not used (captions=false)")
    contents = {path: text for path in texts[:LABELS_SAMPLED] if (text := _readable(read_text, path)) is not None}
    wrong = [path for path, text in contents.items() if coordinates_in(text)] if captions is None else []
    if wrong:
        first = contents[wrong[0]].splitlines()[0][:40]
        raise DataError(
            f"{wrong[0]}: {first!r} is coordinates, not a caption (in {len(wrong)} of the first {len(contents)} .txt "
            "files); `mtgen shards inspect` names the recipe that reads them, such as yolo; captions=false leaves them "
            "out, captions=true takes them for captions"
        )
    annotations = [path for path in files if path.suffix == ".json"][:LABELS_SAMPLED]
    values = {path: found for path in annotations if (found := _readable(read_annotation, path)) is not None}
    unknown = [path for path, found in values.items() if not {"boxes", "labels"} & set(found)]
    if unknown and "shapes" in values[unknown[0]]:
        raise DataError(
            f"{unknown[0]}: is an annotation of labelme, which this recipe does not read; `mtgen shards inspect` names "
            "the recipe that does"
        )
    if unknown:
        keys = ", ".join(list(values[unknown[0]])[:4])
        notices.append(f"{unknown[0].name} and others have neither boxes nor labels ({keys}): they are not used")
    return notices


def _readable(reader: Callable[[Path], Content], path: Path) -> Content | None:
    """The content of a file, or `None` if it is damaged: the sample that it belongs to reports that."""
    try:
        return reader(path)
    except DataError:
        return None


def read_annotation(path: Path) -> dict[str, Any]:
    """Read boxes and labels of an `x.json`; `DataError` if it is not an object with lists of them."""
    values = read_json(path)
    if not isinstance(values, dict) or not all(isinstance(values.get(key, []), list) for key in ("boxes", "labels")):
        raise DataError(f"{path}: has to be an object such as {ANNOTATION_EXAMPLE}")
    boxes = [box if isinstance(box, list) else [box] for box in values.get("boxes", [])]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for box in boxes for v in box):
        raise DataError(f"{path}: a box is [x0, y0, x1, y1, class], five numbers")
    if invalid := [box for box in boxes if len(box) == 5 and not float(box[4]).is_integer()]:
        raise DataError(f"{path}: box {invalid[0]}: the last number, its class, has to be an integer")
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in values.get("labels", [])):
        raise DataError(f"{path}: labels have to be class numbers, integers")
    return values
