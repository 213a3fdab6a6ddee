"""Training a tokenizer on the captions of a data set."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mtgen.data.index import open_index
from mtgen.data.index_build import IndexProgress
from mtgen.data.tokenizer import FileTokenizer
from mtgen.errors import DataError
from mtgen.shards.input_files import write_atomic
from mtgen.storage.source import is_url

TOKENIZER_FILE = "tokenizer.json"

MIN_VOCABULARY = 257
"""Smallest vocabulary: all bytes, so that every text has tokens, and padding."""

MIN_PAIR_COUNT = 2
"""Pairs of tokens that occur less often are not merged: a single caption does not establish a word."""


def train_tokenizer(
    folder: str,
    vocabulary: int = 4096,
    split: str = "train",
    out: Path | None = None,
    progress: IndexProgress | None = None,
) -> tuple[Path, FileTokenizer]:
    """Train byte-level byte-pair encoding on the captions of a split; the same captions give the same tokenizer.

    Source: Sennrich et al. 2016; Radford et al. 2019.

    Args:
        folder: folder with `dataset.json`, or its URL.
        vocabulary: largest size of the vocabulary, including padding; captions with few words need less.
        out: the file to write; default: `tokenizer.json` beside `dataset.json`.

    Raises:
        DataError: the data cannot be read, a caption is not UTF-8, no sample has one, or the file cannot be written.
    """
    if vocabulary < MIN_VOCABULARY:
        raise DataError(
            f"--vocabulary={vocabulary}: bytes and padding alone need {MIN_VOCABULARY}; give more, such as 4096"
        )
    if out is None and is_url(folder):
        raise DataError(f"{folder}: the tokenizer cannot be written to a URL; choose a local file with --out FILE")
    path = out or Path(folder) / TOKENIZER_FILE
    index = open_index(folder, split)
    rows = np.flatnonzero(index.present["caption"])
    if not len(rows):
        raise DataError(
            f"{folder}: no sample of split {split!r} has a caption (KEY.txt) to train on; "
            "choose another split with --split, or use the default tokenizer (bytes)"
        )

    def captions() -> Iterator[str]:
        for done, i in enumerate(rows.tolist()):
            index.prefetch(rows[done : done + 1])
            try:
                yield index.read(i, "caption").decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{index.name(i)}: caption: not UTF-8 at byte {error.start}; write captions in UTF-8"
                ) from None
            if progress is not None:
                progress(done + 1, len(rows))

    text = _train_bpe(captions(), vocabulary)
    write_atomic(path, text)
    return path, FileTokenizer(text.encode("utf-8"))


def _train_bpe(captions: Iterator[str], vocabulary: int) -> str:
    """Train on captions; returns the content of `tokenizer.json`."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    # the prefix space makes the first word the same token as later in a sentence
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        min_frequency=MIN_PAIR_COUNT,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return str(tokenizer.to_str(pretty=True))
