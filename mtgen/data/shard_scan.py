"""Reading one shard from front to back: its samples, their components, and everything that is wrong with them."""

import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mtgen.data import image_io
from mtgen.errors import printable
from mtgen.schema import DatasetCard

COMPONENT_BY_SUFFIX = {
    "jpg": "image",
    "jpeg": "image",
    "png": "image",
    "webp": "image",
    "cls": "class",
    "mask.png": "mask",
    "json": "boxes",
    "txt": "caption",
    "wav": "sound",
    "flac": "sound",
}
"""What a member's name after its first dot says about it; members with other suffixes are left alone."""

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # WebDataset's own rule for key and suffix
_MAX_INT32 = 2**31 - 1
MAX_IMAGE_PIXELS = 2**26
"""Pixels of the largest image that is decoded (64 million): a small file can claim any number of them."""

_REWRITE_HINT = "copy or write this shard again"


@dataclass(frozen=True)
class Problem:
    """Something wrong in a data set: where (the key is empty when it is the whole file), what, and the component or "shard" it is about."""

    file: str
    key: str
    what: str
    kind: str = "shard"

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.what) if part)


@dataclass(frozen=True)
class StoredComponent:
    """One component of a sample as it lies in the tar."""

    suffix: str
    offset: int
    data: bytes

    @property
    def crc(self) -> int:
        """CRC-32 of its bytes, as the index keeps it."""
        return zlib.crc32(self.data)


@dataclass
class StoredSample:
    """The components with one key that follow each other in a shard."""

    key: str
    parts: dict[str, StoredComponent] = field(default_factory=dict)


@dataclass
class Header:
    """What a sample says about itself without being decoded; -1 or empty where it does not."""

    format: str = ""
    width: int = -1
    height: int = -1
    label: int = -1


def key_of(member: str) -> str:
    """The key of the sample that a member belongs to, by its name."""
    match = _NAME.fullmatch(member)
    return match[1] if match else member


def samples(path: Path, name: str | None = None, others: bool = False) -> Iterator[StoredSample | Problem]:
    """Samples of a shard in their order, between them what is wrong with its structure. Never raises for bad content.

    Args:
        name: what the shard is called in problems; default: the file's own name.
        others: members with suffixes that say nothing here come too, as components of that name.
    """
    sample: StoredSample | None = None
    name = name or path.name
    for item in _members(path, name, others):
        if isinstance(item, Problem):
            if not item.key:  # the shard cannot be read on: the sample at that place is not whole
                sample = None
            yield item
            continue
        key, part = item
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = StoredSample(key)
        component = COMPONENT_BY_SUFFIX.get(part.suffix, part.suffix)
        if component in sample.parts:
            yield Problem(
                name,
                key,
                f"{component} twice (.{sample.parts[component].suffix} and .{part.suffix}); keep one",
                component,
            )
        elif not part.data and part.suffix in COMPONENT_BY_SUFFIX:
            yield Problem(
                name, key, f".{part.suffix} is empty (0 bytes); leave it out of the shard or write it again", component
            )
        else:
            sample.parts[component] = part
    if sample is not None:
        yield sample


def _members(path: Path, name: str, others: bool) -> Iterator[tuple[str, StoredComponent] | Problem]:
    if not path.is_file():
        yield Problem(
            name,
            "",
            f"dataset.json names this shard, {path.parent} does not have it; bring it back or correct dataset.json",
        )
        return
    try:
        with path.open("rb") as file:
            yield from _read(name, file, others)
    except OSError as error:
        yield Problem(name, "", f"cannot be read ({error.strerror})")


def _read(shard: str, file: BinaryIO, others: bool) -> Iterator[tuple[str, StoredComponent] | Problem]:
    length, offset, wrong = os.fstat(file.fileno()).st_size, 0, None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # memory must not grow with the number of members
                if tar.offset > length:
                    wrong = f"cut short at byte {length:,}: {member.name} begins at byte {member.offset:,} and ends after it"
                    break
                if (refusal := _refusal(member)) is not None:
                    yield Problem(shard, printable(member.name), refusal)
                elif (match := _NAME.fullmatch(member.name)) is not None and not member.isdir():
                    suffix = match[2].lower() if match[2].lower() in COMPONENT_BY_SUFFIX else match[2]
                    if others or suffix in COMPONENT_BY_SUFFIX:
                        file.seek(member.offset_data)
                        yield match[1], StoredComponent(suffix, member.offset_data, file.read(member.size))
                offset = tar.offset
            else:
                wrong = _end(file, tar.offset, length)
    except (
        tarfile.TarError,
        ValueError,
        OverflowError,
    ) as error:  # the last two from headers that contradict themselves
        if length and file.tell() >= length:
            wrong = f"cut short at byte {length:,}: {error}"
        elif offset:
            wrong = f"damaged header at byte {offset:,} ({error}), what follows it cannot be read"
        else:
            wrong = f"not a readable tar ({error}; the file has {length:,} bytes)"
    if wrong is not None:
        yield Problem(shard, "", f"{wrong}; {_REWRITE_HINT}")


def _refusal(member: tarfile.TarInfo) -> str | None:
    """Why a member may not be in a shard, if it may not; folders do no harm."""
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "is a link or another special file; shards hold plain files only"
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return "its name is absolute or has '..'; name members by key and suffix"
    if any("\ud800" <= letter <= "\udfff" for letter in member.name):  # how tarfile hands over bytes that are no text
        return "its name is not UTF-8"
    return "is larger than 2 GiB" if member.size > _MAX_INT32 else None


def _end(file: BinaryIO, offset: int, length: int) -> str | None:
    """What is wrong with a tar's end: tarfile takes a damaged or missing header for it; a real one is zeros and nothing else."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return f"cut short at byte {length:,} (no end-of-archive block)"
    if block.strip(b"\0"):
        return f"damaged header at byte {offset:,}, what follows it cannot be read"
    while rest := file.read(1 << 20):
        if rest.strip(b"\0"):
            return f"its end is at byte {offset:,}, and data follows (two tars in one file?)"
    return None


def header(sample: StoredSample, shard: str, card: DatasetCard) -> tuple[Header, list[Problem]]:
    """Read a sample's headers and class number, without decoding anything."""
    found = Header()
    problems: list[tuple[str, str]] = []
    if (image := sample.parts.get("image")) is None:
        problems.append(("image", "a sample without an image; every sample needs a .jpg, .png or .webp"))
    else:
        try:
            found.format, found.width, found.height = image_io.header(image.data)
        except ValueError as error:
            problems.append(("image", f"image: {error}"))
        else:
            if unusable := list(_unusable(image.data, found.width, found.height)):
                problems += [("image", f"image: {what}") for what in unusable]
                found = Header()
    if (mask := sample.parts.get("mask")) is not None:
        if not card.mask_classes:
            problems.append(("mask", "a mask, and dataset.json names no mask_classes"))
        elif (what := _mask_problem(mask.data, found)) is not None:
            problems.append(("mask", f"mask: {what}"))
    if (label := sample.parts.get("class")) is not None:
        text = label.data.strip()
        if not re.fullmatch(rb"-?[0-9]{1,18}", text):
            problems.append(("class", f".cls holds {text[:20]!r}; a class number is written in digits, such as 7"))
        elif not 0 <= int(text) < len(card.classes):
            named = f"names 0 to {len(card.classes) - 1}" if card.classes else "names no classes"
            problems.append(("class", f"class number {int(text)}, dataset.json {named}"))
        else:
            found.label = int(text)
    return found, [Problem(shard, sample.key, what, kind) for kind, what in problems]


def _unusable(data: bytes, width: int, height: int) -> Iterator[str]:
    """What a look at an image's size and its last bytes shows."""
    if width * height > MAX_IMAGE_PIXELS:
        yield f"{width}x{height} pixels, more than the {MAX_IMAGE_PIXELS:,} that are decoded; make it smaller"
    if reason := image_io.truncation_problem(data) or image_io.dali_problem(data):
        yield reason


def is_annotation(data: bytes) -> bool:
    """Whether a sample's JSON is about boxes or labels; what others write beside an image (img2dataset: url, caption) is not.

    What cannot be read counts as if it were: damage is to be named, not passed over.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return True
    return not isinstance(values, dict) or "boxes" in values or "labels" in values


def _mask_problem(data: bytes, image: Header) -> str | None:
    """A PNG's first chunk says all that matters about a mask (PNG specification, 11.2.2 IHDR)."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 33:
        return f"not a PNG file (it begins with {data[:8]!r})"
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if image.width > 0 and (width, height) != (image.width, image.height):
        return f"{width}x{height} pixels, its image has {image.width}x{image.height}; they have to be of one size"
    if cut := image_io.truncation_problem(data):
        return cut
    if (data[24], data[25]) != (8, 0):
        return (
            f"bit depth {data[24]}, color type {data[25]}; a mask is an 8-bit gray PNG with the class number as value"
        )
    return None
