"""Captions as numbers: their UTF-8 bytes, or the tokens of a tokenizer that was trained on captions."""

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtgen.errors import DataError
from mtgen.storage.source import read_file

PADDING_TOKEN = 0
"""Number where a caption has ended; tokens count from 1."""

TRAIN_TOKENIZER_HINT = "`mtgen shards tokenizer FOLDER` trains one on a data set's captions"


class Tokenizer(ABC):
    """Text -> numbers. White space around a text says nothing and is left out.

    Attributes:
        vocabulary: how many numbers there are, padding (0) included.
        digest: the same for tokenizers that give the same numbers: what a resumed run compares.
    """

    vocabulary: int
    digest: str

    def encode(self, caption: bytes | str, length: int, *, whole: bool = False) -> NDArray[np.int64]:
        """A caption -> `[length]` int64: its tokens, cut after `length` of them, then 0.

        Args:
            whole: refuse a caption that would be cut; for one that a user gives, of which nothing may be lost silently.

        Raises:
            ValueError: it is not UTF-8, or is too long; the message is one line.
        """
        try:
            text = caption if isinstance(caption, str) else caption.decode("utf-8")
            found = self._tokens(text.strip())
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 at byte {error.start}; write captions in UTF-8") from None
        except UnicodeEncodeError as error:  # half of a pair of UTF-16
            raise ValueError(f"character {error.start} is none that UTF-8 can write; write captions in UTF-8") from None
        if whole and len(found) > length:
            raise ValueError(f"is {len(found)} tokens long, {length} fit; shorten it")
        out = np.full(length, PADDING_TOKEN, dtype=np.int64)
        kept = found[: self._end(found, length)]
        out[: len(kept)] = kept
        return out

    @abstractmethod
    def _tokens(self, text: str) -> NDArray[np.int64]:
        """`[n]` numbers from 1."""

    def _end(self, found: NDArray[np.int64], length: int) -> int:
        """How many of the tokens are kept, `length` at most."""
        return min(length, len(found))


class ByteTokenizer(Tokenizer):
    """Every byte of the text's UTF-8 is a token, `b + 1`; needs no file and loses nothing. Cut between two characters."""

    vocabulary = 257
    digest = "bytes"

    def _tokens(self, text: str) -> NDArray[np.int64]:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) + 1

    def _end(self, found: NDArray[np.int64], length: int) -> int:
        end = super()._end(found, length)
        while 0 < end < len(found) and 0x80 <= found[end] - 1 < 0xC0:  # what follows goes on with a character
            end -= 1
        return end


class FileTokenizer(Tokenizer):
    """A `tokenizer.json` as the `tokenizers` library writes it; a token is its number there + 1. Special tokens are not added.

    Args:
        data: the file's content.

    Raises:
        ValueError: it is none; the message is one line.
    """

    def __init__(self, data: bytes) -> None:
        import tokenizers

        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # noqa: BLE001 - the library raises bare `Exception`s
            raise ValueError(f"no tokenizer ({' '.join(str(error).split())}); {TRAIN_TOKENIZER_HINT}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        numbers = self._tokenizer.get_vocab(with_added_tokens=True).values()
        if not numbers:
            raise ValueError(f"a tokenizer that has no tokens; {TRAIN_TOKENIZER_HINT}")
        self.vocabulary = max(numbers) + 2
        self.digest = hashlib.sha256(data).hexdigest()

    def _tokens(self, text: str) -> NDArray[np.int64]:
        text.encode("utf-8")  # else the library fails on it in words of its own
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64) + 1


BYTE_TOKENIZER = ByteTokenizer()


def open_tokenizer(path: str | None) -> Tokenizer:
    """The tokenizer in a file, given by path or URL; `None`: bytes.

    Raises:
        DataError: the file is not there, cannot be read, or is no tokenizer.
    """
    if path is None:
        return BYTE_TOKENIZER
    try:
        return FileTokenizer(read_file(path, "data.tokenizer", TRAIN_TOKENIZER_HINT))
    except ValueError as reason:
        raise DataError(f"{path}: {reason}") from None
