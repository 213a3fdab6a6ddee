"""Messages from the page to its server: JSON, validated before use."""

import io
import json
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError

from mtgen.errors import DataError
from mtgen.inference.inputs import InMemoryFile
from mtgen.inference.prompt import PromptRequest

MAX_IMAGES = 64
"""Maximum number of images per request."""
MAX_FILE_BYTES = 20_000_000
"""Maximum size of a file."""
MAX_BODY_BYTES = MAX_FILE_BYTES * 4 // 3 + 3_000_000
"""Maximum size of a message: a file in base64, and the rest."""
MAX_SEED = 2**31 - 1
"""Largest seed."""
MAX_LAYOUT_SIDE = 4096
"""Maximum side of a painted layout in pixels."""
MAX_SOUND_SECONDS = 60
"""Maximum length of a sound. A run hears only its beginning, so a longer one is a mistake."""

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Truncation = Annotated[float, Field(ge=0, le=1)]
UnitFraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(max_length=500)]


class Message(BaseModel):
    """Base of all messages; unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid")


class UploadedFile(Message):
    """A file that the user opened or recorded, or a generated image."""

    name: str = Field(max_length=255)
    data: Base64Bytes

    def to_file(self) -> InMemoryFile:
        """Convert to a file in memory.

        Raises:
            DataError: the file is too large.
        """
        if len(self.data) > MAX_FILE_BYTES:
            raise DataError(
                f"{self.name}: is {len(self.data) / 1e6:.1f} MB; possible: up to {MAX_FILE_BYTES / 1e6:g} MB"
            )
        return InMemoryFile(self.name, self.data)


class PaintedMask(Message):
    """A mask painted on the page: one byte per pixel, row by row; 255 is anything."""

    width: int = Field(ge=1, le=MAX_LAYOUT_SIDE)
    height: int = Field(ge=1, le=MAX_LAYOUT_SIDE)
    data: Base64Bytes

    def to_file(self) -> InMemoryFile:
        """Convert to a PNG file in memory, so that it is validated like any other mask.

        Raises:
            DataError: the number of bytes does not match width and height.
        """
        if len(self.data) != self.width * self.height:
            raise DataError(f"layout: has {len(self.data)} bytes; should have {self.width}x{self.height}")
        out = io.BytesIO()
        Image.fromarray(np.frombuffer(self.data, np.uint8).reshape(self.height, self.width)).save(out, "PNG")
        return InMemoryFile("mask.png", out.getvalue())


class DrawnBox(Message):
    """A box drawn on the page, with its corners as fractions of the image's sides and its class by name."""

    x0: UnitFraction
    y0: UnitFraction
    x1: UnitFraction
    y1: UnitFraction
    name: Name


class PromptMessage(Message):
    """The conditions of generated images; they cycle through several classes, captions or domains.

    Attributes:
        classes: lists of names; those of one list are in one image.
    """

    classes: list[Annotated[list[Name], Field(min_length=1, max_length=MAX_IMAGES)]] = Field(
        default_factory=list, max_length=MAX_IMAGES
    )
    captions: list[Annotated[str, Field(max_length=5_000)]] = Field(default_factory=list, max_length=MAX_IMAGES)
    sound: UploadedFile | None = None
    image: UploadedFile | None = None
    mask: PaintedMask | None = None
    boxes: list[DrawnBox] = Field(default_factory=list, max_length=200)
    domains: list[Name] = Field(default_factory=list, max_length=MAX_IMAGES)

    def to_prompt_request(self, size: tuple[int, int]) -> PromptRequest:
        """Convert to the request of `mtgen sample`; a mask and boxes are separate layouts.

        Args:
            size: height and width of the run's images.

        Raises:
            DataError: a file is too large, or a sound is too long.
        """
        layouts = [] if self.mask is None else [self.mask.to_file()]
        if self.boxes:
            height, width = size
            boxes = [[b.x0 * width, b.y0 * height, b.x1 * width, b.y1 * height, b.name] for b in self.boxes]
            layouts.append(
                InMemoryFile("boxes.json", json.dumps({"width": width, "height": height, "boxes": boxes}).encode())
            )
        return PromptRequest(
            ["+".join(some) for some in self.classes],
            self.captions,
            [_check_sound(self.sound.to_file())] if self.sound else [],
            [self.image.to_file()] if self.image else [],
            layouts,
            self.domains,
        )


def _check_sound(file: InMemoryFile) -> InMemoryFile:
    """Return a sound that is not too long; the decoder reports a damaged one."""
    from mtgen.data.audio import sound_info  # imports DALI, which nothing else here needs

    try:
        seconds, _, _ = sound_info(file.data)
    except ValueError:
        return file
    if seconds > MAX_SOUND_SECONDS:
        raise DataError(f"sound {file.name}: is {seconds:,.0f} s long; possible: up to {MAX_SOUND_SECONDS} s")
    return file


class SampleMessage(Message):
    """Request for samples."""

    prompt: PromptMessage = Field(default_factory=PromptMessage)
    n: int = Field(16, ge=1, le=MAX_IMAGES)
    seed: Seed = 0
    truncation: Truncation = 1.0


class InterpolationEnd(Message):
    """One end of an interpolation."""

    prompt: PromptMessage = Field(default_factory=PromptMessage)
    seed: Seed = 0


class InterpolateMessage(Message):
    """Request for an interpolation between two samples."""

    first: InterpolationEnd
    last: InterpolationEnd
    n: int = Field(9, ge=2, le=MAX_IMAGES)
    truncation: Truncation = 1.0


class PredictMessage(Message):
    """Request for the prediction and reconstruction of an image."""

    image: UploadedFile


class TranslateMessage(Message):
    """Request for translations of an image into other domains or classes."""

    image: UploadedFile
    to: list[Name] = Field(min_length=1, max_length=MAX_IMAGES)
    seed: Seed = 0


class LayoutMessage(Message):
    """Request to decode a mask file."""

    file: UploadedFile


def first_problem(error: ValidationError) -> str:
    """The first problem of an invalid message, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key or 'message'}: {first['msg'][:1].lower()}{first['msg'][1:]}"
