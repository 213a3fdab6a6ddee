"""What the page asks of the server: JSON, checked before anything of it is used."""

import io
import json
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError

from mtgen.errors import DataError
from mtgen.inference.inputs import Received
from mtgen.inference.prompt import Request

MOST = 64
"""Images that are drawn at a time, at most."""
FILE = 20_000_000
"""Bytes of a file, at most."""
BODY = FILE * 4 // 3 + 3_000_000
"""Bytes of a message, at most: a file in base64, and the rest."""
SEED = 2**31 - 1
"""The largest seed."""
SIDE = 4096
"""Pixels of a drawn layout's sides, at most."""
SECONDS = 60
"""Seconds of a sound, at most. A run hears its beginning alone: nobody means a longer one."""

Seed = Annotated[int, Field(ge=0, le=SEED)]
Truncation = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(max_length=500)]


class Message(BaseModel):
    """Fields that nobody knows are refused."""

    model_config = ConfigDict(extra="forbid")


class File(Message):
    """A file that the user chose, recorded or drew."""

    name: str = Field(max_length=255)
    data: Base64Bytes

    def received(self) -> Received:
        """The file for those who read files.

        Raises:
            DataError: it is too large.
        """
        if len(self.data) > FILE:
            raise DataError(f"{self.name}: is {len(self.data) / 1e6:.1f} MB; possible: up to {FILE / 1e6:g} MB")
        return Received(self.name, self.data)


class Mask(Message):
    """A mask that was drawn on the page: a byte a pixel, row by row; 255 is anything."""

    width: int = Field(ge=1, le=SIDE)
    height: int = Field(ge=1, le=SIDE)
    data: Base64Bytes

    def received(self) -> Received:
        """The mask as a file, so that it is judged like any other.

        Raises:
            DataError: it has too few or too many bytes.
        """
        if len(self.data) != self.width * self.height:
            raise DataError(f"layout: {len(self.data)} bytes are not {self.width}x{self.height} pixels")
        out = io.BytesIO()
        Image.fromarray(np.frombuffer(self.data, np.uint8).reshape(self.height, self.width)).save(out, "PNG")
        return Received("layout.png", out.getvalue())


class Box(Message):
    """A box that was drawn on the page, in shares of the image's sides."""

    x0: Share
    y0: Share
    x1: Share
    y1: Share
    name: Name


class Wish(Message):
    """What images are asked for by. Several classes, captions or domains are asked for in turn.

    Attributes:
        classes: names; those of one list in one image.
    """

    classes: list[Annotated[list[Name], Field(min_length=1, max_length=MOST)]] = Field(
        default_factory=list, max_length=MOST
    )
    captions: list[Annotated[str, Field(max_length=5_000)]] = Field(default_factory=list, max_length=MOST)
    sound: File | None = None
    image: File | None = None
    mask: Mask | None = None
    boxes: list[Box] = Field(default_factory=list, max_length=200)
    domains: list[Name] = Field(default_factory=list, max_length=MOST)

    def request(self, size: tuple[int, int]) -> Request:
        """The wish as `mtgen sample` has it; a mask and boxes together are asked for in turn.

        Args:
            size: height and width of the run's images.

        Raises:
            DataError: a file is too large, or a sound too long.
        """
        layouts = [] if self.mask is None else [self.mask.received()]
        if self.boxes:
            height, width = size
            boxes = [[b.x0 * width, b.y0 * height, b.x1 * width, b.y1 * height, b.name] for b in self.boxes]
            layouts.append(
                Received("boxes.json", json.dumps({"width": width, "height": height, "boxes": boxes}).encode())
            )
        return Request(
            ["+".join(some) for some in self.classes],
            self.captions,
            [_audible(self.sound.received())] if self.sound else [],
            [self.image.received()] if self.image else [],
            layouts,
            self.domains,
        )


def _audible(file: Received) -> Received:
    """The sound, if it is not too long; one that is damaged is left to those who decode it."""
    from mtgen.data.audio import about  # brings DALI, which nothing else here needs

    try:
        seconds, _, _ = about(file.data)
    except ValueError:
        return file
    if seconds > SECONDS:
        raise DataError(f"sound {file.name}: is {seconds:,.0f} seconds long; give one of up to {SECONDS}")
    return file


class Draw(Message):
    """Draw samples."""

    wish: Wish = Field(default_factory=Wish)
    n: int = Field(16, ge=1, le=MOST)
    seed: Seed = 0
    truncation: Truncation = 1.0


class End(Message):
    """One end of a way."""

    wish: Wish = Field(default_factory=Wish)
    seed: Seed = 0


class Between(Message):
    """Draw the way from one sample to another."""

    first: End
    last: End
    n: int = Field(9, ge=2, le=MOST)
    truncation: Truncation = 1.0


class Read(Message):
    """Read an image, and draw it anew."""

    image: File


class Translate(Message):
    """Draw an image anew in other domains, or as other classes."""

    image: File
    to: list[Name] = Field(min_length=1, max_length=MOST)
    seed: Seed = 0


class Layout(Message):
    """Read a mask's file."""

    file: File


def explained(error: ValidationError) -> str:
    """What is wrong with a message, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place or 'message'}: {first['msg'][:1].lower()}{first['msg'][1:]}"
