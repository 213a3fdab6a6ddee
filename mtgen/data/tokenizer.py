"""Captions -> token numbers: the bytes of their UTF-8, or tokens of a trained tokenizer."""

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtgen.errors import DataError
from mtgen.storage.source import read_file

PADDING_TOKEN = 0
"""Number after the end of a caption; token numbers start from 1."""

TRAIN_TOKENIZER_HINT = "`mtgen shards tokenizer FOLDER` trains one on a data set's captions"


class Tokenizer(ABC):
    """Text -> token numbers. Leading and trailing white space is stripped.

    Attributes:
        vocabulary: size of the vocabulary, including padding (0).
        digest: equal for tokenizers that give the same numbers; a resumed run compares it.
    """

    vocabulary: int
    digest: str

    def encode(self, caption: bytes | str, length: int, *, whole: bool = False) -> NDArray[np.int64]:
        """Encode a caption -> `[length]` int64: its tokens, truncated or padded with 0.

        Args:
            whole: raise an error instead of truncating; for a user's caption, which must not be cut silently.

        Raises:
            ValueError: it is not UTF-8, or is too long; the message is one line.
        """
        try:
            text = caption if isinstance(caption, str) else caption.decode("utf-8-sig")
            tokens = self._tokens(text.strip())
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 at byte {error.start}; write captions in UTF-8") from None
        except UnicodeEncodeError as error:  # a lone UTF-16 surrogate
            raise ValueError(f"character {error.start} cannot be encoded in UTF-8; write captions in UTF-8") from None
        if whole and len(tokens) > length:
            raise ValueError(f"is {len(tokens)} tokens long, the limit is {length}; shorten it")
        out = np.full(length, PADDING_TOKEN, dtype=np.int64)
        kept = tokens[: self._end(tokens, length)]
        out[: len(kept)] = kept
        return out

    @abstractmethod
    def _tokens(self, text: str) -> NDArray[np.int64]:
        """Text -> `[n]` token numbers, starting from 1."""

    def _end(self, tokens: NDArray[np.int64], length: int) -> int:
        """The number of tokens that are kept, at most `length`."""
        return min(length, len(tokens))


class ByteTokenizer(Tokenizer):
    """Byte `b` of the UTF-8 encoding is token `b + 1`. Needs no file, is lossless, and truncates between characters."""

    vocabulary = 257
    digest = "bytes"

    def _tokens(self, text: str) -> NDArray[np.int64]:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) + 1

    def _end(self, tokens: NDArray[np.int64], length: int) -> int:
        end = super()._end(tokens, length)
        while 0 < end < len(tokens) and 0x80 <= tokens[end] - 1 < 0xC0:  # a continuation byte: inside a character
            end -= 1
        return end


class FileTokenizer(Tokenizer):
    """A `tokenizer.json` of the `tokenizers` library; token numbers are the library's + 1. No special tokens are added.

    Args:
        data: content of the file.

    Raises:
        ValueError: it is not a tokenizer; the message is one line.
    """

    def __init__(self, data: bytes) -> None:
        import tokenizers

        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # noqa: BLE001 - the library raises bare `Exception`s
            raise ValueError(f"not a tokenizer ({' '.join(str(error).split())}); {TRAIN_TOKENIZER_HINT}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        numbers = self._tokenizer.get_vocab(with_added_tokens=True).values()
        if not numbers:
            raise ValueError(f"the tokenizer has no tokens; {TRAIN_TOKENIZER_HINT}")
        self.vocabulary = max(numbers) + 2
        self.digest = hashlib.sha256(data).hexdigest()

    def _tokens(self, text: str) -> NDArray[np.int64]:
        text.encode("utf-8")  # raises UnicodeEncodeError, where the library would raise its own error
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64) + 1


BYTE_TOKENIZER = ByteTokenizer()


def open_tokenizer(path: str | None) -> Tokenizer:
    """Open the tokenizer in a file, given by path or URL; `None`: the byte tokenizer.

    Raises:
        DataError: the file does not exist, cannot be read, or is not a tokenizer.
    """
    if path is None:
        return BYTE_TOKENIZER
    try:
        return FileTokenizer(read_file(path, "data.tokenizer", TRAIN_TOKENIZER_HINT))
    except ValueError as reason:
        raise DataError(f"{path}: {reason}") from None
