"""Reading `dataset.json`, the data set's card, and listing the shards that it names."""

import re
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from mtgen.errors import DataError
from mtgen.schema import DatasetCard
from mtgen.storage.remote_store import RemoteStore
from mtgen.storage.source import LocalFolder, open_source
from mtgen.utils.shell import shell_command

CARD_FILE = "dataset.json"


def read_card(folder: str | Path) -> DatasetCard:
    """Read the card of the data set in `folder`.

    Raises:
        DataError: the folder or its `dataset.json` does not exist, or the card is invalid; one line per invalid key.
    """
    return card_of(folder, read_card_text(open_source(folder), folder))[0]


def read_card_text(source: LocalFolder | RemoteStore, folder: str | Path | None = None) -> bytes:
    """The content of `dataset.json`.

    Args:
        folder: as the user wrote it, for messages.

    Raises:
        DataError: the folder or the file does not exist.
    """
    folder = folder or str(source)
    if isinstance(source, LocalFolder) and not source.path.is_dir():
        raise DataError(f"{folder}: the folder does not exist; give the one with {CARD_FILE} and its shards")
    if (text := source.read(CARD_FILE)) is not None:
        return text
    if isinstance(source, LocalFolder):
        raise DataError(_without_card(source.path))
    raise DataError(
        f"{folder}/{CARD_FILE}: the file does not exist; give the URL of the folder with {CARD_FILE} and its shards"
    )


def card_of(folder: str | Path, text: bytes) -> tuple[DatasetCard, str]:
    """The card in the content of `dataset.json`, and the digest of the index that it names; "" if it names none.

    Raises:
        DataError: the card is invalid; one line per invalid key.
    """
    path = f"{folder}/{CARD_FILE}"
    try:
        card = DatasetCard.model_validate_json(text)
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg'].lower()}" for e in error.errors()]
        raise DataError("\n".join(lines)) from None
    digest = (card.model_extra or {}).get("index")
    if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest):  # it says nothing about the data
        del card.__pydantic_extra__["index"]  # type: ignore[union-attr]
    else:
        digest = ""
    if not card.splits:
        raise DataError(
            f"{path}: splits: is empty; "
            'write for example {"train": {"samples": 100, "shards": "train-{000000..000003}.tar"}}'
        )
    if not 0 <= card.ignore_index <= 255:
        raise DataError(f"{path}: ignore_index={card.ignore_index}: masks are 8-bit, so possible: 0 to 255")
    return card, digest


def _without_card(folder: Path) -> str:
    """The error of a folder without a card; what is in the folder decides the remedy."""
    problem = f"{folder}: no {CARD_FILE} in this folder"
    if tars := len(list(folder.glob("*.tar"))):
        command = shell_command("mtgen shards describe", folder)
        return f"{problem} ({tars} tar file{'s' * (tars > 1)}); `{command}` writes one from the shards"
    found = "no tar files" if any(folder.iterdir()) else "the folder is empty"
    return f"{problem} ({found}); give the one with {CARD_FILE} and its shards, or make a data set: `mtgen shards make`"


def shard_names(folder: Path | str, card: DatasetCard, split: str) -> list[str]:
    """The shards of a split, with `{000000..000003}` expanded.

    Raises:
        DataError: the split names no shards, or one outside the folder.
    """
    from braceexpand import braceexpand  # imported here: inference does without it

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
                f"{where}: {name!r} is a URL or a command, not a file name; give paths relative to {CARD_FILE}"
            )
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{where}: {name!r} is outside the data set's folder; give paths relative to {CARD_FILE}")
    return names
