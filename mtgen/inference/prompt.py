"""Conversion of a user's request, in words and files, to the prompt that a model takes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from mtgen.data.tokenizer import open_tokenizer
from mtgen.errors import ConfigError, DataError
from mtgen.inference.inputs import open_cropped, read_file, to_input
from mtgen.inference.label_names import domain_names, parse_classes, parse_domain
from mtgen.inference.layouts import MODALITY_BY_SUFFIX, read_boxes_layout, read_mask_layout
from mtgen.models.model import Model
from mtgen.schema import Prompt
from mtgen.shards.input_files import FileLike

T = TypeVar("T", str, FileLike)

OPTION_BY_MODALITY = {
    "class": "--class",
    "labels": "--class A+B",
    "caption": "--text",
    "sound": "--sound",
    "image": "--image",
    "layout": "--layout MASK.png",
    "boxes": "--layout BOXES.json",
    "domain": "--domain",
}
"""Modality -> the command line's option for it."""


@dataclass(frozen=True)
class PromptRequest:
    """Conditions to generate for, as typed; several values of one kind are combined with every value of the others.

    Attributes:
        classes: names or numbers; "a+b": both in one image.
        texts: captions.
        sounds: WAV or FLAC files.
        images: image files that the samples should resemble.
        layouts: mask files (PNG) or box files (JSON).
        domains: names or numbers of data sets in the run's mixture.
    """

    classes: Sequence[str] = ()
    texts: Sequence[str] = ()
    sounds: Sequence[FileLike] = ()
    images: Sequence[FileLike] = ()
    layouts: Sequence[FileLike] = ()
    domains: Sequence[str] = ()


@dataclass(frozen=True)
class PromptPart:
    """One parsed condition.

    Attributes:
        modality: name of the modality.
        value: its raw form, without the batch dimension.
        name: label in pictures.
        classes: numbers of the classes in it.
        caption: the text of a caption; else `None`.
    """

    modality: str
    value: Tensor
    name: str
    classes: tuple[int, ...] = ()
    caption: str | None = None


@dataclass
class ParsedPrompt:
    """A parsed request.

    Attributes:
        prompt: one row for each combination of conditions.
        names: label of each row.
        classes: numbers of the classes of each row.
        captions: caption of each row.
    """

    prompt: Prompt
    names: list[str]
    classes: list[tuple[int, ...]]
    captions: list[str | None]

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def labels(self) -> Tensor:
        """`[R]` class of each row; -1 if it has none or several."""
        return torch.tensor([some[0] if len(some) == 1 else -1 for some in self.classes])


def parse_request(model: Model, request: PromptRequest) -> ParsedPrompt:
    """Parse a request; an empty one becomes one row per class if the run was trained on classes.

    Raises:
        ConfigError: the run was not trained on a condition, a class or domain does not exist, or a caption is too long.
        DataError: a file cannot be read.
    """
    rows = _combinations(model, request)
    if rows == [()] and {"class", "labels"} & set(model.conditions):
        rows = [(_class(model, str(number)),) for number in range(len(model.card.classes))]
    return _parsed(rows)


def parse_interpolation_ends(model: Model, first: PromptRequest, last: PromptRequest) -> ParsedPrompt:
    """Parse two requests as the ends of an interpolation: two rows, each the first combination of its request.

    The row of an empty request is unconditional.

    Raises:
        ConfigError, DataError: as `parse_request`.
    """
    return _parsed([_combinations(model, first)[0], _combinations(model, last)[0]])


def _combinations(model: Model, request: PromptRequest) -> list[tuple[PromptPart, ...]]:
    """Every combination of the request's conditions; one empty combination for an empty request."""
    kinds: list[list[PromptPart]] = [
        _parts(request.classes, lambda text: _class(model, text)),
        _parts(request.texts, lambda text: _caption(model, text)),
        _sounds(model, request.sounds),
        _parts(request.images, lambda image: _image(model, image)),
        _parts(request.layouts, lambda layout: _layout(model, layout)),
        _parts(request.domains, lambda text: _domain(model, text)),
    ]
    return list(product(*[parts for parts in kinds if parts]))


def _parsed(rows: Sequence[tuple[PromptPart, ...]]) -> ParsedPrompt:
    return ParsedPrompt(
        _to_prompt(rows),
        [" ".join(part.name for part in row) for row in rows],
        [tuple(number for part in row for number in part.classes) for row in rows],
        [next((part.caption for part in row if part.caption is not None), None) for row in rows],
    )


def _parts(values: Iterable[T], parse: Callable[[T], PromptPart]) -> list[PromptPart]:
    """Parse values and drop duplicates, also those under another name ("two", "2")."""
    parts: list[PromptPart] = []
    for value in dict.fromkeys(values):
        part = parse(value)
        if not any(part.modality == other.modality and torch.equal(part.value, other.value) for other in parts):
            parts.append(part)
    return parts


def _to_prompt(rows: Sequence[Sequence[PromptPart]]) -> Prompt:
    """Stack the parts of all rows into a prompt; a modality is 0 and not given in rows that lack it."""
    values: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}
    for part in (part for row in rows for part in row):
        if part.modality not in values:
            own = [next((p.value for p in row if p.modality == part.modality), None) for row in rows]
            values[part.modality] = torch.stack(
                [torch.zeros_like(part.value) if value is None else value for value in own]
            )
            given[part.modality] = torch.tensor([value is not None for value in own])
    return Prompt(len(rows), values, given)


def require(model: Model, modality: str, value: str | FileLike) -> None:
    """Check that a run was trained on a modality.

    Raises:
        ConfigError: it was not; names the conditions that it was trained on.
    """
    if modality in model.conditions:
        return
    possible = ", ".join(OPTION_BY_MODALITY.get(name, name) for name in model.conditions)
    raise ConfigError(
        f"{OPTION_BY_MODALITY[modality]} {str(value)!r}: "
        + (
            f"the run was not trained on this condition ({modality}); it was trained on: {possible}"
            if possible
            else "the run is unconditional; remove this option"
        )
    )


def _class(model: Model, text: str) -> PromptPart:
    numbers = parse_classes(text, model.card) if {"class", "labels"} & set(model.conditions) else []
    modality = "class" if "class" in model.conditions and len(numbers) < 2 else "labels"
    require(model, modality if numbers else "class", text)
    value = torch.tensor(numbers[0]) if modality == "class" else torch.zeros(len(model.card.classes))
    if modality == "labels":
        value[numbers] = 1
    return PromptPart(modality, value, "+".join(model.card.classes[number] for number in numbers), tuple(numbers))


def _caption(model: Model, text: str) -> PromptPart:
    require(model, "caption", text)
    if not text.strip():
        raise ConfigError("--text: is empty; remove this option to generate without a caption")
    try:
        found = open_tokenizer(model.config.data.tokenizer).encode(text, model.config.caption_tokens, whole=True)
    except ValueError as reason:
        raise ConfigError(f"--text {text!r}: {reason}") from None
    return PromptPart("caption", torch.from_numpy(found), repr(text), caption=text)


def _sounds(model: Model, paths: Sequence[FileLike]) -> list[PromptPart]:
    """Decode sounds as in training: resampled, cut if too long, padded with silence if too short."""
    if not paths:
        return []
    require(model, "sound", paths[0])
    from mtgen.data.audio import SoundDecoder
    from mtgen.data.pipeline import DamagedBatch  # both import DALI, which nothing else here needs

    decoder, parts = SoundDecoder(model.config.data.sound, 1, 1), []
    for path in dict.fromkeys(paths):
        data = read_file(path)
        try:
            if not data:
                raise DataError(f"--sound {path}: is empty; give a playable WAV or FLAC file")
            (value,) = decoder.decode([data], str)
        except DamagedBatch as damaged:
            reason = damaged.found[0].what.removeprefix("sound: ").rpartition(";")[0]
            raise DataError(f"--sound {path}: {reason}; give a playable WAV or FLAC file") from None
        parts.append(PromptPart("sound", value, path.name))
    return parts


def _image(model: Model, path: FileLike) -> PromptPart:
    require(model, "image", path)
    crop = open_cropped(read_file(path), str(path), model.channels, model.size)
    with torch.no_grad():
        embedding = model.networks.side.embed(to_input(crop.picture, model.size)[None].to(model.device))
    return PromptPart("image", embedding[0].float().cpu(), path.name)


def _layout(model: Model, path: FileLike) -> PromptPart:
    modality = MODALITY_BY_SUFFIX.get(path.suffix.lower())
    if modality is None:
        raise ConfigError(f"--layout {path}: is neither a mask nor boxes; give a .png (mask) or .json (boxes) file")
    require(model, modality, path)
    if modality == "layout":
        return PromptPart(modality, read_mask_layout(path, model.card, model.size), path.name)
    return PromptPart(modality, read_boxes_layout(path, model.card, model.size, model.config.data.max_boxes), path.name)


def _domain(model: Model, text: str) -> PromptPart:
    require(model, "domain", text)
    number = parse_domain(text, model.config)
    return PromptPart("domain", torch.tensor(number), domain_names(model.config)[number])
