"""The draft of a data set, for a folder or a store."""

from pathlib import Path

from mtgen.schema import DatasetCard
from mtgen.shards.draft import Draft
from mtgen.shards.folder_draft import FolderDraft
from mtgen.storage.source import LocalFolder, open_source


def open_draft(location: str | Path, card: DatasetCard, overwrite: bool = False, recipe: str = "") -> Draft:
    """The draft of a data set in a folder or a store.

    Args:
        location: folder or URL; it must not exist, or be empty.
        card: names of its classes and mask classes.
        overwrite: replace the data set in a folder.
        recipe: see `Draft`.

    Raises:
        DataError: the location cannot be written to.
    """
    source = open_source(location)
    if isinstance(source, LocalFolder):
        return FolderDraft(source.path, overwrite, recipe)
    from mtgen.shards.store_draft import StoreDraft  # imported here: inference does without it

    return StoreDraft(source, card, overwrite, recipe)
