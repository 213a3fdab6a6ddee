"""What a user asks for, in words and files, as the prompt that a run was trained to read."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from mtgen.data.tokenizer import open_tokenizer
from mtgen.errors import ConfigError, DataError
from mtgen.inference.inputs import as_input, file, opened
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
"""Modality -> what a user asks for it by."""


@dataclass(frozen=True)
class PromptRequest:
    """What is asked for, as typed. Several values of one kind are asked for in turn, in every combination with the other kinds.

    Attributes:
        classes: names or numbers; "a+b": both in one image.
        texts: captions.
        sounds: WAV or FLAC files.
        images: image files that the samples should resemble.
        layouts: masks (PNG) or boxes (JSON).
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
    """One condition, read.

    Attributes:
        modality, value: its raw form, without the batch's dimension.
        name: what it is called over pictures.
        classes: numbers of the classes that it asks for.
        caption: the caption that it is.
    """

    modality: str
    value: Tensor
    name: str
    classes: tuple[int, ...] = ()
    caption: str | None = None


@dataclass
class ParsedPrompt:
    """A request, read.

    Attributes:
        prompt: a row for each combination.
        names: what each row is called.
        classes: the classes that each row asks for.
        captions: the caption that each row asks for.
    """

    prompt: Prompt
    names: list[str]
    classes: list[tuple[int, ...]]
    captions: list[str | None]

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def labels(self) -> Tensor:
        """`[R]` the one class that a row asks for; -1 where it asks for none or for several."""
        return torch.tensor([some[0] if len(some) == 1 else -1 for some in self.classes])


def parse_request(model: Model, request: PromptRequest) -> ParsedPrompt:
    """Read everything that is asked for; where nothing is, all classes in turn, if the run was trained on classes.

    Raises:
        ConfigError: the run was not trained on a condition, or knows no such class or domain; or a caption is too long.
        DataError: a file cannot be read as what it should be.
    """
    rows = _rows(model, request)
    if rows == [()] and {"class", "labels"} & set(model.conditions):
        rows = [(_class(model, str(number)),) for number in range(len(model.card.classes))]
    return _asked(rows)


def parse_interpolation_ends(model: Model, first: PromptRequest, last: PromptRequest) -> ParsedPrompt:
    """Two requests as the ends of a way, a row each: the first combination of each; nothing asked for is a row without a condition.

    Raises:
        ConfigError, DataError: as `parse_request`.
    """
    return _asked([_rows(model, first)[0], _rows(model, last)[0]])


def _rows(model: Model, request: PromptRequest) -> list[tuple[PromptPart, ...]]:
    """Every combination of what is asked for; one without a part where nothing is."""
    kinds: list[list[PromptPart]] = [
        _parts(request.classes, lambda text: _class(model, text)),
        _parts(request.texts, lambda text: _caption(model, text)),
        _sounds(model, request.sounds),
        _parts(request.images, lambda image: _image(model, image)),
        _parts(request.layouts, lambda layout: _layout(model, layout)),
        _parts(request.domains, lambda text: _domain(model, text)),
    ]
    return list(product(*[parts for parts in kinds if parts]))


def _asked(rows: Sequence[tuple[PromptPart, ...]]) -> ParsedPrompt:
    return ParsedPrompt(
        _prompt(rows),
        [" ".join(part.name for part in row) for row in rows],
        [tuple(number for part in row for number in part.classes) for row in rows],
        [next((part.caption for part in row if part.caption is not None), None) for row in rows],
    )


def _parts(values: Iterable[T], read: Callable[[T], PromptPart]) -> list[PromptPart]:
    """The values, read; what is given twice, if under another name ("two", "2"), once."""
    parts: list[PromptPart] = []
    for value in dict.fromkeys(values):
        part = read(value)
        if not any(part.modality == other.modality and torch.equal(part.value, other.value) for other in parts):
            parts.append(part)
    return parts


def _prompt(rows: Sequence[Sequence[PromptPart]]) -> Prompt:
    """Parts of each row -> a prompt, 0 where a row has no such part."""
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
    """Raises:
    ConfigError: the run was not trained on `modality`; names those that it was trained on.
    """
    if modality in model.conditions:
        return
    possible = ", ".join(OPTION_BY_MODALITY.get(name, name) for name in model.conditions)
    raise ConfigError(
        f"{OPTION_BY_MODALITY[modality]} {str(value)!r}: the run was not trained on this condition ({modality}); "
        + (f"it was trained on: {possible}" if possible else "it was trained on none, so ask for nothing")
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
        raise ConfigError("--text: is empty; leave it out to ask for no caption")
    try:
        found = open_tokenizer(model.config.data.tokenizer).encode(text, model.config.caption_tokens, whole=True)
    except ValueError as reason:
        raise ConfigError(f"--text {text!r}: {reason}") from None
    return PromptPart("caption", torch.from_numpy(found), repr(text), caption=text)


def _sounds(model: Model, paths: Sequence[FileLike]) -> list[PromptPart]:
    """Sounds as the run was trained on them: any rate is resampled, a long one cut, a short one filled up with silence."""
    if not paths:
        return []
    require(model, "sound", paths[0])
    from mtgen.data.audio import SoundDecoder
    from mtgen.data.pipeline import DamagedBatch  # these bring DALI, which nothing else here needs

    decoder, parts = SoundDecoder(model.config.data.sound, 1, 1), []
    for path in dict.fromkeys(paths):
        data = file(path)
        try:
            if not data:
                raise DataError(f"--sound {path}: is empty; give a WAV or FLAC file that can be heard")
            (value,) = decoder.decode([data], str)
        except DamagedBatch as damaged:
            reason = damaged.found[0].what.removeprefix("sound: ").rpartition(";")[0]
            raise DataError(f"--sound {path}: {reason}; give a WAV or FLAC file that can be heard") from None
        parts.append(PromptPart("sound", value, path.name))
    return parts


def _image(model: Model, path: FileLike) -> PromptPart:
    require(model, "image", path)
    cut = opened(file(path), str(path), model.channels, model.size)
    with torch.no_grad():
        embedding = model.networks.side.embed(as_input(cut.picture, model.size)[None].to(model.device))
    return PromptPart("image", embedding[0].float().cpu(), path.name)


def _layout(model: Model, path: FileLike) -> PromptPart:
    modality = MODALITY_BY_SUFFIX.get(path.suffix.lower())
    if modality is None:
        raise ConfigError(f"--layout {path}: is neither a mask (.png) nor boxes (.json)")
    require(model, modality, path)
    if modality == "layout":
        return PromptPart(modality, read_mask_layout(path, model.card, model.size), path.name)
    return PromptPart(modality, read_boxes_layout(path, model.card, model.size, model.config.data.max_boxes), path.name)


def _domain(model: Model, text: str) -> PromptPart:
    require(model, "domain", text)
    number = parse_domain(text, model.config)
    return PromptPart("domain", torch.tensor(number), domain_names(model.config)[number])
