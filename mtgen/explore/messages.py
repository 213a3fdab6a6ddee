"""What the page asks of the server: JSON, checked before anything of it is used."""

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
"""Images that are drawn at a time, at most."""
MAX_FILE_BYTES = 20_000_000
"""Bytes of a file, at most."""
MAX_BODY_BYTES = MAX_FILE_BYTES * 4 // 3 + 3_000_000
"""Bytes of a message, at most: a file in base64, and the rest."""
MAX_SEED = 2**31 - 1
"""The largest seed."""
MAX_LAYOUT_SIDE = 4096
"""Pixels of a drawn layout's sides, at most."""
MAX_SOUND_SECONDS = 60
"""Seconds of a sound, at most. A run hears its beginning alone: nobody means a longer one."""

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Truncation = Annotated[float, Field(ge=0, le=1)]
UnitFraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(max_length=500)]


class Message(BaseModel):
    """Fields that nobody knows are refused."""

    model_config = ConfigDict(extra="forbid")


class UploadedFile(Message):
    """A file that the user chose, recorded or drew."""

    name: str = Field(max_length=255)
    data: Base64Bytes

    def to_file(self) -> InMemoryFile:
        """The file for those who read files.

        Raises:
            DataError: it is too large.
        """
        if len(self.data) > MAX_FILE_BYTES:
            raise DataError(
                f"{self.name}: is {len(self.data) / 1e6:.1f} MB; possible: up to {MAX_FILE_BYTES / 1e6:g} MB"
            )
        return InMemoryFile(self.name, self.data)


class DrawnMask(Message):
    """A mask that was drawn on the page: a byte a pixel, row by row; 255 is anything."""

    width: int = Field(ge=1, le=MAX_LAYOUT_SIDE)
    height: int = Field(ge=1, le=MAX_LAYOUT_SIDE)
    data: Base64Bytes

    def to_file(self) -> InMemoryFile:
        """The mask as a file, so that it is judged like any other.

        Raises:
            DataError: it has too few or too many bytes.
        """
        if len(self.data) != self.width * self.height:
            raise DataError(f"layout: {len(self.data)} bytes are not {self.width}x{self.height} pixels")
        out = io.BytesIO()
        Image.fromarray(np.frombuffer(self.data, np.uint8).reshape(self.height, self.width)).save(out, "PNG")
        return InMemoryFile("layout.png", out.getvalue())


class DrawnBox(Message):
    """A box that was drawn on the page, in shares of the image's sides."""

    x0: UnitFraction
    y0: UnitFraction
    x1: UnitFraction
    y1: UnitFraction
    name: Name


class PromptMessage(Message):
    """What images are asked for by. Several classes, captions or domains are asked for in turn.

    Attributes:
        classes: names; those of one list in one image.
    """

    classes: list[Annotated[list[Name], Field(min_length=1, max_length=MAX_IMAGES)]] = Field(
        default_factory=list, max_length=MAX_IMAGES
    )
    captions: list[Annotated[str, Field(max_length=5_000)]] = Field(default_factory=list, max_length=MAX_IMAGES)
    sound: UploadedFile | None = None
    image: UploadedFile | None = None
    mask: DrawnMask | None = None
    boxes: list[DrawnBox] = Field(default_factory=list, max_length=200)
    domains: list[Name] = Field(default_factory=list, max_length=MAX_IMAGES)

    def to_prompt_request(self, size: tuple[int, int]) -> PromptRequest:
        """The wish as `mtgen sample` has it; a mask and boxes together are asked for in turn.

        Args:
            size: height and width of the run's images.

        Raises:
            DataError: a file is too large, or a sound too long.
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
            [_audible(self.sound.to_file())] if self.sound else [],
            [self.image.to_file()] if self.image else [],
            layouts,
            self.domains,
        )


def _audible(file: InMemoryFile) -> InMemoryFile:
    """The sound, if it is not too long; one that is damaged is left to those who decode it."""
    from mtgen.data.audio import sound_info  # brings DALI, which nothing else here needs

    try:
        seconds, _, _ = sound_info(file.data)
    except ValueError:
        return file
    if seconds > MAX_SOUND_SECONDS:
        raise DataError(f"sound {file.name}: is {seconds:,.0f} seconds long; give one of up to {MAX_SOUND_SECONDS}")
    return file


class SampleMessage(Message):
    """Draw samples."""

    wish: PromptMessage = Field(default_factory=PromptMessage)
    n: int = Field(16, ge=1, le=MAX_IMAGES)
    seed: Seed = 0
    truncation: Truncation = 1.0


class InterpolationEnd(Message):
    """One end of a way."""

    wish: PromptMessage = Field(default_factory=PromptMessage)
    seed: Seed = 0


class InterpolateMessage(Message):
    """Draw the way from one sample to another."""

    first: InterpolationEnd
    last: InterpolationEnd
    n: int = Field(9, ge=2, le=MAX_IMAGES)
    truncation: Truncation = 1.0


class PredictMessage(Message):
    """Read an image, and draw it anew."""

    image: UploadedFile


class TranslateMessage(Message):
    """Draw an image anew in other domains, or as other classes."""

    image: UploadedFile
    to: list[Name] = Field(min_length=1, max_length=MAX_IMAGES)
    seed: Seed = 0


class LayoutMessage(Message):
    """Read a mask's file."""

    file: UploadedFile


def explained(error: ValidationError) -> str:
    """What is wrong with a message, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place or 'message'}: {first['msg'][:1].lower()}{first['msg'][1:]}"
