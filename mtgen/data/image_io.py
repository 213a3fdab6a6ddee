"""One image: its header and pixels through Pillow, which is the second opinion that says what is wrong with it, and its resizing."""

import io

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP")

TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)
"""EXIF orientations that change width for height (Exif 2.32, table 6)."""


def header(data: bytes) -> tuple[str, int, int]:
    """Format ("jpeg", "png", "webp"), width and height as displayed (EXIF orientation applied) of an encoded image, without decoding it.

    Raises:
        ValueError: it is none of these, or is damaged; the message is one line.
    """
    kind = _kind(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            exif = (
                picture.getexif() if picture.format != "PNG" or "exif" in picture.info else {}
            )  # else Pillow decodes a PNG to look for it
            turned = exif.get(ExifTags.Base.Orientation) in TRANSPOSING_ORIENTATIONS
            width, height = reversed(picture.size) if turned else picture.size
            return (
                str(picture.format).lower().replace("mpo", "jpeg"),
                width,
                height,
            )  # MPO: a JPEG with another one behind it
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise whatever damaged bytes lead them to
        raise ValueError(f"damaged {kind} ({_line(error)})") from None


def truncation_problem(data: bytes) -> str | None:
    """What the last bytes of a PNG or JPEG show to be missing, without decoding it."""
    if data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-4096:]:  # some cameras write more behind it
        return "damaged JPEG (cut short: no end-of-image marker)"
    if data.startswith(b"\x89PNG") and b"IEND" not in data[-64:]:
        return "damaged PNG (cut short: no IEND at its end)"
    return None


def dali_problem(data: bytes) -> str | None:
    """Why DALI cannot read an image that is whole, without decoding it: behind a chunk of odd length it looks for a WebP's EXIF one byte
    too early (2.4.0; chunks are padded to even lengths: RFC 9649, section 2.3)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    at, odd = 12, False
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if odd and data[at : at + 4] == b"EXIF":
            return (
                "a WebP with EXIF behind a chunk of odd length, which DALI cannot read; save it without EXIF, or as PNG"
            )
        odd = odd or length % 2 == 1
        at += 8 + length + length % 2
    return None


def decode_upright(data: bytes) -> Image.Image:
    """The decoded picture, gray or RGB with 8 bits, as displayed: palettes and inks are colors, transparency is dropped.

    Raises:
        ValueError: damaged; the message is one line.
    """
    return to_eight_bits(_decoded(data))


def to_eight_bits(picture: Image.Image) -> Image.Image:
    """Gray or RGB with 8 bits; Pillow clips 16 bits to 8, where DALI scales them."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    return picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")


def pixels(data: bytes) -> NDArray[np.uint8]:
    """The decoded pixels, `[H,W]` or `[H,W,C]`, as displayed.

    Raises:
        ValueError: damaged; the message is one line.
    """
    return np.asarray(_decoded(data))


def _decoded(data: bytes) -> Image.Image:
    kind = _kind(data)
    if kind == "PNG" and (cut := truncation_problem(data)):  # Pillow lets it pass, DALI does not
        raise ValueError(cut)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return ImageOps.exif_transpose(picture)  # a copy, whole
    except Exception as error:  # noqa: BLE001 - as above
        raise ValueError(f"damaged {kind} ({_line(error)})") from None


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """`[h,w,C]` uint8 -> `[height,width,C]` uint8, by a triangular filter that widens where it reduces (antialiasing)."""
    (image,) = F.interpolate(pixels[None].permute(0, 3, 1, 2), size=(height, width), mode="bilinear", antialias=True)
    return image.permute(1, 2, 0)


def to_unit_range(pixels: Tensor) -> Tensor:
    """`[...,H,W,C]` uint8 -> `[...,C,H,W]` float32 in [-1,1], channels last in memory."""
    return pixels.float().mul_(1 / 127.5).sub_(1).movedim(-1, -3)


def _kind(data: bytes) -> str:
    if data.startswith(b"\xff\xd8"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    raise ValueError(f"not a JPEG, PNG or WebP file (it begins with {data[:8]!r})")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return type(error).__name__ if not text or "BytesIO" in text else text
