"""Scanning one shard from front to back: its samples, their components, and everything that is wrong with them."""

import codecs
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
"""Suffix of a member (its name after the first dot) -> component; members with other suffixes are ignored."""

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # WebDataset's rule for key and suffix
MAX_MEMBER_BYTES = 2**31 - 1
"""Largest member of a shard: the index stores sizes as int32."""

MAX_IMAGE_PIXELS = 2**26
"""Largest image that is decoded, pixels (64 million): a small file can claim any number of them."""

_REWRITE_HINT = "copy or write this shard again"


@dataclass(frozen=True)
class Problem:
    """Something wrong in a data set.

    Attributes:
        file: the shard, or `dataset.json`.
        key: key of the sample; empty if the problem concerns the whole file.
        what: the problem and its remedy.
        kind: the component concerned, or "shard".
    """

    file: str
    key: str
    what: str
    kind: str = "shard"

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.what) if part)


@dataclass(frozen=True)
class StoredComponent:
    """One component of a sample as stored in the tar; `offset` is that of its data, bytes."""

    suffix: str
    offset: int
    data: bytes

    @property
    def crc(self) -> int:
        """CRC-32 of the bytes, which the index stores."""
        return zlib.crc32(self.data)


@dataclass
class StoredSample:
    """Consecutive members of a shard with the same key.

    Attributes:
        repeated: whether earlier members, which others follow, have the same key.
    """

    key: str
    parts: dict[str, StoredComponent] = field(default_factory=dict)
    repeated: bool = False


@dataclass
class Header:
    """What is known of a sample without decoding it; -1 or empty if unknown."""

    format: str = ""
    width: int = -1
    height: int = -1
    label: int = -1


def key_of(member: str) -> str:
    """The key of the sample that a member belongs to, from the member's name."""
    match = _NAME.fullmatch(member)
    return match[1] if match else member


def samples(path: Path, name: str | None = None, others: bool = False) -> Iterator[StoredSample | Problem]:
    """Yield the samples of a shard in order, and the problems of its structure. Never raises for bad content.

    Args:
        name: name of the shard in problems; default: the name of the file.
        others: also yield members with unknown suffixes, as components named by the suffix.
    """
    sample: StoredSample | None = None
    seen: set[str] = set()
    name = name or path.name
    for item in _members(path, name, others):
        if isinstance(item, Problem):
            if not item.key:  # the rest of the shard is unreadable, so the current sample may be incomplete
                sample = None
            yield item
            continue
        key, part = item
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = StoredSample(key, repeated=key in seen)
            seen.add(key)
        component = COMPONENT_BY_SUFFIX.get(part.suffix, part.suffix)
        if component in sample.parts:
            suffixes = f".{sample.parts[component].suffix} and .{part.suffix}"
            yield Problem(name, key, f"{component} twice ({suffixes}); keep one", component)
        elif component == "caption" and not part.data.removeprefix(codecs.BOM_UTF8).strip():
            continue  # an empty caption is none
        elif not part.data and part.suffix in COMPONENT_BY_SUFFIX:
            what = f".{part.suffix} is empty (0 bytes); remove it from the shard or write it again"
            yield Problem(name, key, what, component)
        else:
            sample.parts[component] = part
    if sample is not None:
        yield sample


def _members(path: Path, name: str, others: bool) -> Iterator[tuple[str, StoredComponent] | Problem]:
    if not path.is_file():
        what = f"dataset.json names this shard, but it is not in {path.parent}; restore it or correct dataset.json"
        yield Problem(name, "", what)
        return
    try:
        with path.open("rb") as file:
            yield from _read(name, file, others)
    except OSError as error:
        yield Problem(name, "", f"cannot be read ({error.strerror})")


def _read(shard: str, file: BinaryIO, others: bool) -> Iterator[tuple[str, StoredComponent] | Problem]:
    length, offset, problem = os.fstat(file.fileno()).st_size, 0, None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # memory must not grow with the number of members
                if tar.offset > length:
                    problem = f"truncated at byte {length:,}, inside {member.name}"
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
                problem = _end_problem(file, tar.offset, length)
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the last two: inconsistent headers
        if length and file.tell() >= length:
            problem = f"truncated at byte {length:,}: {error}"
        elif offset:
            problem = f"damaged header at byte {offset:,} ({error}), the rest cannot be read"
        else:
            problem = f"not a readable tar file ({error}; it has {length:,} bytes)"
    if problem is not None:
        yield Problem(shard, "", f"{problem}; {_REWRITE_HINT}")


def _refusal(member: tarfile.TarInfo) -> str | None:
    """Why a member is not allowed in a shard; folders are harmless."""
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "is a link or another special file; shards hold plain files only"
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return "its name is absolute or has '..'; name members by key and suffix"
    if any("\ud800" <= letter <= "\udfff" for letter in member.name):  # tarfile decodes other bytes to surrogates
        return "its name is not UTF-8; rename it"
    return "is larger than 2 GiB; make it smaller" if member.size > MAX_MEMBER_BYTES else None


def _end_problem(file: BinaryIO, offset: int, length: int) -> str | None:
    """What is wrong with the end of a tar; a valid end is nothing but zeros.

    `tarfile` also stops at a damaged or missing header.
    """
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return f"truncated at byte {length:,} (no end-of-archive block)"
    if block.strip(b"\0"):
        return f"damaged header at byte {offset:,}, the rest cannot be read"
    while rest := file.read(1 << 20):
        if rest.strip(b"\0"):
            return f"it ends at byte {offset:,}, but more data follows (two tar files in one?)"
    return None


def header(sample: StoredSample, shard: str, card: DatasetCard) -> tuple[Header, list[Problem]]:
    """Read the headers of a sample's image and mask, and its class number, without decoding anything."""
    found = Header()
    problems: list[tuple[str, str]] = []
    if (image := sample.parts.get("image")) is None:
        order = "; its key has other members earlier: write them one after another (tar --sort=name)"
        needed = "has no image; every sample needs a .jpg, .png or .webp"
        problems.append(("image", needed + (order if sample.repeated else "")))
    else:
        try:
            found.format, found.width, found.height = image_io.header(image.data)
        except ValueError as error:
            problems.append(("image", f"image: {error}"))
        else:
            if image_problems := list(_image_problems(image.data, found.width, found.height)):
                problems += [("image", f"image: {what}") for what in image_problems]
                found = Header()
    if (mask := sample.parts.get("mask")) is not None:
        if not card.mask_classes:
            problems.append(("mask", "has a mask, but dataset.json names no mask_classes; name them there"))
        elif (what := _mask_problem(mask.data, found)) is not None:
            problems.append(("mask", f"mask: {what}"))
    if (label := sample.parts.get("class")) is not None:
        text = label.data.strip()
        if not re.fullmatch(rb"-?[0-9]{1,18}", text):
            problems.append(("class", f".cls contains {text[:20]!r}; it has to be a class number in digits, such as 7"))
        elif not 0 <= int(text) < len(card.classes):
            named = f"names 0 to {len(card.classes) - 1}" if card.classes else "names no classes"
            problems.append(("class", f"class number {int(text)}, dataset.json {named}; correct one of them"))
        else:
            found.label = int(text)
    return found, [Problem(shard, sample.key, what, kind) for kind, what in problems]


def _image_problems(data: bytes, width: int, height: int) -> Iterator[str]:
    """Problems that an image's size and its last bytes show."""
    if width * height > MAX_IMAGE_PIXELS:
        yield f"{width}x{height} pixels, the limit is {MAX_IMAGE_PIXELS:,}; make it smaller"
    if reason := image_io.truncation_problem(data) or image_io.dali_problem(data):
        yield reason


def components_of_json(data: bytes) -> list[str]:
    """Which of "boxes" and "tags" a sample's JSON has. That of other tools (img2dataset: url, caption) has neither.

    Boxes name everything in the image, and so tags too; `labels` alone are tags, and the boxes are then unknown, which
    is not "there are none". An unreadable JSON counts as both, so that the damage is reported and not ignored.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return ["boxes", "tags"]
    if not isinstance(values, dict) or "boxes" in values:
        return ["boxes", "tags"]
    return ["tags"] if "labels" in values else []


def _mask_problem(data: bytes, image: Header) -> str | None:
    """What is wrong with a mask, by the first chunk of its PNG (PNG specification, 11.2.2 IHDR)."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 33:
        return f"not a PNG file (it starts with {data[:8]!r})"
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if image.width > 0 and (width, height) != (image.width, image.height):
        return f"{width}x{height} pixels, its image has {image.width}x{image.height}; make them the same size"
    if problem := image_io.truncation_problem(data):
        return problem
    if (data[24], data[25]) != (8, 0):
        return (
            f"bit depth {data[24]}, color type {data[25]}; save masks as 8-bit gray PNG with the class number as value"
        )
    return None
