"""A tokenizer made of a data set's own captions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mtgen.data.index import open_index
from mtgen.data.index_build import IndexProgress
from mtgen.data.tokenizer import FileTokenizer
from mtgen.errors import DataError
from mtgen.shards.input_files import write_whole
from mtgen.storage.source import is_url

TOKENIZER_FILE = "tokenizer.json"

MIN_VOCABULARY = 257
"""Numbers that bytes and padding take: every text has to have tokens."""

MIN_PAIR_COUNT = 2
"""A pair of tokens that comes less often is not joined: what stands in one caption is no part of the language."""


def train_tokenizer(
    folder: str,
    vocabulary: int = 4096,
    split: str = "train",
    out: Path | None = None,
    progress: IndexProgress | None = None,
) -> tuple[Path, FileTokenizer]:
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019) of a split's captions, the same for the same captions.

    Args:
        folder: with `dataset.json`, or its URL.
        vocabulary: numbers at most, padding included; captions of few words have fewer.
        out: the file to write; default: `tokenizer.json` beside `dataset.json`.

    Raises:
        DataError: the data cannot be read, a caption is not UTF-8 (its sample is named), no sample has one, or the file cannot be written.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocabulary < MIN_VOCABULARY:
        raise DataError(
            f"--vocabulary={vocabulary}: bytes and padding alone take {MIN_VOCABULARY}; give that or more, such as 4096"
        )
    if out is None and is_url(folder):
        raise DataError(
            f"{folder}: nothing can be written beside a data set behind a URL; say where to with --out FILE"
        )
    path = out or Path(folder) / TOKENIZER_FILE
    index = open_index(folder, split)
    rows = np.flatnonzero(index.present["caption"])
    if not len(rows):
        raise DataError(
            f"{folder}: no sample of split {split!r} has a caption (KEY.txt), so there is nothing to train a tokenizer on"
        )

    def captions() -> Iterator[str]:
        for done, i in enumerate(rows.tolist()):
            index.prefetch(rows[done : done + 1])
            try:
                yield index.read(i, "caption").decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{index.name(i)}: caption: not UTF-8 at byte {error.start}; write captions in UTF-8"
                ) from None
            if progress is not None:
                progress(done + 1, len(rows))

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=True
    )  # the first word is the same token as later in a sentence
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        captions(),
        trainers.BpeTrainer(
            vocab_size=vocabulary - 1, min_frequency=MIN_PAIR_COUNT, initial_alphabet=alphabet, show_progress=False
        ),
    )
    text = made.to_str(pretty=True)
    write_whole(path, text)
    return path, FileTokenizer(text.encode("utf-8"))
