"""Captions as numbers: UTF-8 bytes, until a tokeniser is trained."""

import numpy as np
from numpy.typing import NDArray

PADDING = 0
"""Number where a caption has ended; a byte `b` is `b + 1`."""


def tokens(caption: bytes, length: int) -> NDArray[np.int64]:
    """A caption -> `[length]`: its bytes + 1, cut between two characters, then 0.

    Raises:
        ValueError: it is not UTF-8; the message is one line.
    """
    try:
        caption.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; write captions in UTF-8") from None
    whole = caption[:length].decode("utf-8", errors="ignore").encode()
    out = np.full(length, PADDING, dtype=np.int64)
    out[: len(whole)] = np.frombuffer(whole, np.uint8).astype(np.int64) + 1
    return out
