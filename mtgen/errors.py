"""Errors that speak to the user: what is wrong, where, and what would be right.

The command line prints the message of a `UserError` alone, without a traceback, and exits with its `status`.
"""

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can mend. The message names the thing (file, key, sample) and the remedy."""

    status = 1


class ConfigError(UserError):
    """A configuration that cannot be used; one line for every key at fault."""

    status = 2


class DataError(UserError):
    """A data set, shard or sample that cannot be read as it stands."""

    status = 3


class DamagedSample(DataError):
    """One sample that cannot be used, while the others around it can.

    Args:
        kind: what of it is damaged: "image", "mask", "boxes", "caption", "sound", or "checksum" where bytes are not those indexed.
        where: the sample's shard and key, as `Index.name` gives them.
        what: what is wrong, and what would be right.
    """

    def __init__(self, kind: str, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.kind = kind
        self.where = where
        self.what = what


class CheckpointError(UserError):
    """A checkpoint that is damaged, or does not fit the run."""

    status = 4


class TrainingError(UserError):
    """Training had to stop: what was saved is named in the message."""

    status = 5


ERROR_BY_STATUS = {kind.status: kind for kind in (UserError, ConfigError, DataError, CheckpointError, TrainingError)}
"""Exit status -> the error that it stands for: what one worker tells the others of its error, beside the message."""


def printable(text: str) -> str:
    """The same, with bytes of file names that are no UTF-8 as escapes, so that it can be written anywhere."""
    return text.encode(errors="backslashreplace").decode()


def summarize_lines(lines: Sequence[str], most: int, what: str = "") -> list[str]:
    """The first lines of a list, and behind them how many more there are; `what` they are."""
    return [*lines[:most], *([f"and {len(lines) - most:,} more{what and ' '}{what}"] if len(lines) > most else [])]


def last_line(error: BaseException) -> str:
    """What an error of somebody else's code says in one line: its last, or its kind where it says nothing."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]
