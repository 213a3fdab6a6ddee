"""Reading the header and pixels of an image with Pillow, whose errors explain what is wrong with it, and resizing."""

import io

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP")

TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height (Exif 2.32, table 6)."""


def header(data: bytes) -> tuple[str, int, int]:
    """Read format ("jpeg", "png", "webp"), width and height of an encoded image without decoding it.

    Width and height are those of the image as displayed: EXIF orientation is applied.

    Raises:
        ValueError: it has another format or is damaged; the message is one line.
    """
    kind = _kind(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            has_exif = picture.format != "PNG" or "exif" in picture.info  # Pillow decodes a whole PNG to search for it
            exif = picture.getexif() if has_exif else {}
            transposed = exif.get(ExifTags.Base.Orientation) in TRANSPOSING_ORIENTATIONS
            width, height = reversed(picture.size) if transposed else picture.size
            image_format = str(picture.format).lower().replace("mpo", "jpeg")  # MPO: a JPEG followed by another one
            return image_format, width, height
    except Exception as error:  # noqa: BLE001 - Pillow raises all kinds of exceptions on damaged bytes
        raise ValueError(f"damaged {kind} ({_one_line(error)})") from None


def truncation_problem(data: bytes) -> str | None:
    """Whether a PNG or JPEG is truncated, by its last bytes alone, without decoding it."""
    if data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-4096:]:  # some cameras append data after the marker
        return "damaged JPEG (truncated: no end-of-image marker)"
    if data.startswith(b"\x89PNG") and b"IEND" not in data[-64:]:
        return "damaged PNG (truncated: no IEND chunk)"
    return None


def dali_problem(data: bytes) -> str | None:
    """Why DALI cannot decode a valid image, found without decoding it.

    DALI 2.4.0 looks for a WebP's EXIF chunk one byte too early after a chunk of odd length (chunks are padded to even
    lengths: RFC 9649, section 2.3).
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    offset, odd = 12, False
    while offset + 8 <= len(data):
        length = int.from_bytes(data[offset + 4 : offset + 8], "little")
        if odd and data[offset : offset + 4] == b"EXIF":
            return (
                "a WebP with EXIF after a chunk of odd length, which DALI cannot read; save it without EXIF, or as PNG"
            )
        odd = odd or length % 2 == 1
        offset += 8 + length + length % 2
    return None


def decode_upright(data: bytes) -> Image.Image:
    """Decode an image as displayed, to 8-bit gray or RGB; palettes and CMYK become RGB, transparency is dropped.

    Raises:
        ValueError: the image is damaged; the message is one line.
    """
    return to_eight_bits(_decode(data))


def to_eight_bits(picture: Image.Image) -> Image.Image:
    """Convert to 8-bit gray or RGB. 16-bit values are scaled, as DALI does; Pillow would clip them."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    return picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")


def pixels(data: bytes) -> NDArray[np.uint8]:
    """Decode an image as displayed, `[H,W]` or `[H,W,C]`.

    Raises:
        ValueError: the image is damaged; the message is one line.
    """
    return np.asarray(_decode(data))


def _decode(data: bytes) -> Image.Image:
    kind = _kind(data)
    if kind == "PNG" and (problem := truncation_problem(data)):  # Pillow accepts a truncated PNG, DALI does not
        raise ValueError(problem)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return ImageOps.exif_transpose(picture)  # always a copy, fully decoded
    except Exception as error:  # noqa: BLE001 - Pillow raises all kinds of exceptions on damaged bytes
        raise ValueError(f"damaged {kind} ({_one_line(error)})") from None


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Resize `[h,w,C]` uint8 -> `[height,width,C]` uint8, bilinear with antialiasing."""
    (image,) = F.interpolate(pixels[None].permute(0, 3, 1, 2), size=(height, width), mode="bilinear", antialias=True)
    return image.permute(1, 2, 0)


def to_unit_range(pixels: Tensor) -> Tensor:
    """`[...,H,W,C]` uint8 -> `[...,C,H,W]` float32 in [-1,1], channels-last in memory."""
    return pixels.float().mul_(1 / 127.5).sub_(1).movedim(-1, -3)


def _kind(data: bytes) -> str:
    if data.startswith(b"\xff\xd8"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    raise ValueError(f"not a JPEG, PNG or WebP file (it starts with {data[:8]!r})")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return type(error).__name__ if not text or "BytesIO" in text else text
