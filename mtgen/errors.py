"""Errors for users: what is wrong, where, and what to do.

The command line prints only the message of a `UserError`, without a traceback, and exits with its `status`.
"""

from collections.abc import Sequence


class UserError(Exception):
    """A problem that the user can fix. The message names the thing (file, key, sample) and the remedy."""

    status = 1


class ConfigError(UserError):
    """An invalid configuration; one line for every key at fault."""

    status = 2


class DataError(UserError):
    """A data set, shard or sample that cannot be read."""

    status = 3


class DamagedSample(DataError):
    """A single sample that cannot be used, while its neighbors can.

    Args:
        kind: the damaged component: "image" or one of `mtgen.schema.COMPONENTS`; "checksum" if the bytes differ from
            those that were indexed.
        where: the sample's shard and key, as `Index.name` gives them.
        what: the problem and the remedy.
    """

    def __init__(self, kind: str, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.kind = kind
        self.where = where
        self.what = what


class ChangedShard(DataError):
    """A shard in a store that is not the one that was indexed."""


class Unreachable(DataError):
    """A store that does not answer, or answers that it is busy: the data may be whole, and a later start succeed."""

    status = 6


class CheckpointError(UserError):
    """A checkpoint that is damaged or does not match the run."""

    status = 4


class TrainingError(UserError):
    """Training had to stop; the message says what was saved."""

    status = 5


ERROR_BY_STATUS = {
    kind.status: kind for kind in (UserError, ConfigError, DataError, CheckpointError, TrainingError, Unreachable)
}
"""Exit status -> error class; workers exchange errors as status and message."""


def printable(text: str) -> str:
    """The text with undecodable bytes of file names as escapes, so that it can be written anywhere."""
    return text.encode(errors="backslashreplace").decode()


def summarize_lines(lines: Sequence[str], most: int, what: str = "") -> list[str]:
    """The first `most` lines and, if there are more, how many; `what` names them."""
    return [*lines[:most], *([f"and {len(lines) - most:,} more{what and ' '}{what}"] if len(lines) > most else [])]


def last_line(error: BaseException) -> str:
    """The last line of another library's error, or the name of its class if it has no message."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]
