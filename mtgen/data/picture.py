"""One encoded image through Pillow: its header, and the second opinion that says what is wrong with it."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")


def header(data: bytes) -> tuple[str, int, int]:
    """Format ("jpeg", "png", "webp"), width and height of an encoded image, without decoding it.

    Raises:
        ValueError: it is none of these, or is damaged; the message is one line.
    """
    kind = _kind(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return str(picture.format).lower(), *picture.size
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise whatever damaged bytes lead them to
        raise ValueError(f"damaged {kind} ({_line(error)})") from None


def pixels(data: bytes) -> NDArray[np.uint8]:
    """The decoded pixels, `[H,W]` or `[H,W,C]`, as stored.

    Raises:
        ValueError: damaged; the message is one line.
    """
    kind = _kind(data)
    if kind == "PNG" and b"IEND" not in data[-64:]:  # Pillow lets it pass, DALI does not
        raise ValueError("damaged PNG (cut short: no IEND at its end)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return np.asarray(picture)
    except Exception as error:  # noqa: BLE001 - as above
        raise ValueError(f"damaged {kind} ({_line(error)})") from None


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
