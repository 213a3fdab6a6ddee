"""`dataset.json`: reading it, and the shards that it names."""

import re
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from mtgen.errors import DataError
from mtgen.schema import DatasetCard
from mtgen.storage.source import LocalFolder, open_source

CARD_FILE = "dataset.json"


def read_card(folder: str | Path) -> DatasetCard:
    """The card of the data set in `folder`.

    Raises:
        DataError: no folder, no `dataset.json`, or one that is not valid; a line for every key at fault.
    """
    source = open_source(folder)
    path = f"{folder}/{CARD_FILE}"
    if isinstance(source, LocalFolder) and not source.path.is_dir():
        raise DataError(f"{folder}: there is no such folder; give the folder that holds {CARD_FILE} and its shards")
    text = source.read(CARD_FILE)
    if text is None and isinstance(source, LocalFolder):
        found = (
            "the folder is empty"
            if not any(source.path.iterdir())
            else f"it has {len(list(source.path.glob('*.tar')))} tar files"
        )
        raise DataError(
            f"{folder}: no {CARD_FILE} in this folder ({found}); every data set needs one beside its shards"
        )
    if text is None:
        raise DataError(
            f"{path}: there is no such file; give the URL of the folder that holds {CARD_FILE} and its shards"
        )
    try:
        card = DatasetCard.model_validate_json(text)
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg'].lower()}" for e in error.errors()]
        raise DataError("\n".join(lines)) from None
    if not card.splits:
        raise DataError(
            f'{path}: splits: names no split; write for example {{"train": {{"samples": 100, "shards": "train-000000.tar"}}}}'
        )
    if not 0 <= card.ignore_index <= 255:
        raise DataError(f"{path}: ignore_index={card.ignore_index}: masks are 8-bit, so it is between 0 and 255")
    return card


def shard_names(folder: Path | str, card: DatasetCard, split: str) -> list[str]:
    """The shards of a split, `{000000..000003}` written out.

    Raises:
        DataError: the split names no shards, or one outside the folder.
    """
    from braceexpand import braceexpand  # here, so that a model is used without it

    where = f"{folder}/{CARD_FILE}: splits.{split}.shards"
    patterns = card.splits[split].shards
    try:
        names = [
            name for pattern in ([patterns] if isinstance(patterns, str) else patterns) for name in braceexpand(pattern)
        ]
    except ValueError:
        raise DataError(
            f"{where}={patterns!r}: unbalanced braces; write for example train-{{000000..000003}}.tar"
        ) from None
    if not [name for name in names if name]:
        raise DataError(f"{where}: names no shards; write for example train-{{000000..000003}}.tar")
    for name in names:
        if name.startswith("|") or re.match("[A-Za-z][A-Za-z0-9+.-]*:", name) or "::" in name:
            raise DataError(
                f"{where}: {name!r} is an address or a command, not a file's name; name shards relative to {CARD_FILE}"
            )
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(
                f"{where}: {name!r} lies outside the data set's folder; name shards relative to {CARD_FILE}"
            )
    return names
