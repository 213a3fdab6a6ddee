"""Repeating requests to a store: which errors may pass, how long to wait for it, and what to say meanwhile."""

import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from mtgen.errors import DataError, Unreachable

T = TypeVar("T")

log = logging.getLogger("mtgen.storage")


@dataclass(frozen=True)
class RetryPolicy:
    """How requests to a store are repeated.

    Attributes:
        first, longest: first and longest pause between attempts, seconds; pauses double, with jitter. A store that
            names a longer pause (Retry-After) gets it.
        stall: seconds without a byte after which an attempt is given up.
        total: seconds after which an attempt is given up.
        patience: seconds after which a store counts as unreachable; training waits for `data.patience` instead.
        warn_every: seconds between two warnings about unreachable stores.
    """

    first: float = 0.5
    longest: float = 20.0
    stall: float = 30.0
    total: float = 600.0
    patience: float = 60.0
    warn_every: float = 60.0


RETRY_POLICY = RetryPolicy()


class WrongLengthError(Exception):
    """A file is shorter or longer than the store reported."""


class _Warnings:
    """One warning a minute in this process, however many requests wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = float("-inf")

    def warn(self, where: str, error: BaseException, waited: float, patience: float) -> None:
        """Warn about a store that has not answered for `waited` seconds, unless there was a warning just now."""
        every, now = RETRY_POLICY.warn_every, time.monotonic()
        with self._lock:
            if waited < every / 6 or now - self._last < every:
                return
            self._last = now
        log.warning(
            "warning: %s: %s; no answer for %.0f s, trying for up to %.0f s (data.patience)",
            where,
            server_message(error),
            waited,
            patience,
        )


_warnings = _Warnings()


def retry(where: str, request: Callable[[], T], patience: float, action: str = "read") -> T | None:
    """Repeat `request` until it succeeds or fails permanently; `None` if the file does not exist.

    Args:
        where: address of the file, for messages.
        patience: seconds to keep trying while the store does not answer, or answers 408, 429 or 5xx.
        action: past participle of what the request does, for the error.

    Raises:
        Unreachable: the store did not answer in time.
        DataError: it refuses.
        OSError: the local disk cannot be written.
    """
    import tenacity  # imported here: only remote stores need it

    def before_sleep(state: Any) -> None:
        _warnings.warn(where, state.outcome.exception(), state.seconds_since_start, patience)

    policy, begin = RETRY_POLICY, time.monotonic()
    backoff = tenacity.wait_exponential_jitter(multiplier=policy.first, max=policy.longest, jitter=policy.first)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=lambda state: max(backoff(state), retry_after(state.outcome.exception())),  # type: ignore[union-attr]
        stop=tenacity.stop_before_delay(patience),
        before_sleep=before_sleep,
        reraise=True,
    )
    try:
        return retrying(request)
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and _local(error):
            raise
        if is_missing(error):
            return None
        if not is_transient(error):
            problem = f"cannot be {action}: {server_message(error)}; check the URL and its access permissions"
            raise DataError(f"{where}: {problem}") from None
        attempts = retrying.statistics.get("attempt_number", 1)
        problem = f"cannot be {action} after {attempts} attempts in {time.monotonic() - begin:.0f} s"
        raise Unreachable(
            f"{where}: {problem}: {server_message(error)}; check that the server is up, then start again"
        ) from None


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error or of its cause."""
    for cause in (error, error.__cause__):
        status = getattr(cause, "status", None)
        if status is None:
            status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is None and isinstance(response := getattr(cause, "response", None), dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int):
            return status
    return None


def retry_after(error: BaseException | None) -> float:
    """The seconds that a store wants to be left alone (its header Retry-After), 0 if it names none or a date."""
    for cause in (error, getattr(error, "__cause__", None)):
        headers = getattr(cause, "headers", None)
        if isinstance(response := getattr(cause, "response", None), dict):  # botocore
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        value = {str(name).lower(): text for name, text in dict(headers or {}).items()}.get("retry-after", "")
        if str(value).isdigit():
            return float(value)
    return 0.0


def is_missing(error: BaseException) -> bool:
    """Whether a file does not exist; fsspec also raises `FileNotFoundError` for other failures, with a cause."""
    if _status(error) is not None:
        return _status(error) in (404, 410)
    return isinstance(error, FileNotFoundError) and isinstance(error.__cause__, KeyError | None)  # memory: KeyError


def _local(error: OSError) -> bool:
    """Whether an error is about the local disk."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR)


def is_transient(error: BaseException) -> bool:
    """Whether another attempt could succeed."""
    if isinstance(error, DataError | PermissionError | NotADirectoryError) or is_missing(error):
        return False
    if isinstance(error, OSError) and _local(error):
        return False
    status = _status(error)
    return status is None or status >= 500 or status in (408, 429)


def server_message(error: BaseException) -> str:
    """The message of the server or of its client, in one line."""
    cause = error if error.__cause__ is None else error.__cause__
    if (status := _status(error)) is not None:
        return f"the server answered {status} {' '.join(str(getattr(cause, 'message', '')).split())}".strip()
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}{f' ({text})' if text else ''}"
