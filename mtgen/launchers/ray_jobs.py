"""A run as a job of a Ray cluster: submitted over its Jobs API with code and configuration, watched, stopped."""

import asyncio
import logging
import os
import secrets
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from mtgen.config import Config, validate
from mtgen.config.paths import absolute
from mtgen.errors import UserError, last_line
from mtgen.utils.yaml_text import override, read_yaml
from mtgen.version import PACKAGE, __version__

JobsSay = Callable[[str], None]
STOP_GRACE_SECONDS = 600
"""Seconds that a stopped job may take for its checkpoint before Ray kills it; Ray's own default is 3."""
FINAL_STATUSES = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class SubmittedJob:
    """A submitted job as the cluster knows it; `exit_status` is its command's, once that has ended."""

    id: str
    run: str
    folder: str
    status: str
    began: datetime | None
    ended: datetime | None
    message: str
    exit_status: int | None


def _token() -> tuple[str | None, str]:
    """Ray's authentication token, from where Ray itself would take it, and that place's name."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip() or None, str(path)
    except FileNotFoundError:
        if given:
            raise UserError(
                f"RAY_AUTH_TOKEN_PATH={given}: there is no such file; copy the cluster's token there, readable by you alone"
            ) from None
        return None, str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: Ray's token cannot be read ({getattr(error, 'strerror', None) or 'not text'})"
        ) from None


def _status(address: str, token: str | None) -> int:
    """HTTP status with which the cluster answers a question for its jobs.

    Raises:
        UserError: nobody answers.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    question = urllib.request.Request(f"{address}/api/jobs/", headers=headers)  # noqa: S310 - http or https
    try:
        with urllib.request.urlopen(question, timeout=30) as answer:  # noqa: S310 - the same
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, HTTPException, UnicodeError) as error:  # HTTPException: what answers speaks no HTTP
        reason = getattr(error, "reason", None) or last_line(error)
        raise UserError(
            f"{address}: no Ray cluster answers there ({reason}); is its head running, with its dashboard? "
            "launch/README.md says how to start one and how to reach it"
        ) from None


def connect(address: str, say: JobsSay) -> Any:
    """A client of the Jobs API at `address`, such as http://127.0.0.1:8265.

    A cluster beyond this machine that lets everybody in is refused: whoever reaches its Jobs API runs commands on it.

    Raises:
        UserError: nobody answers, or no Ray cluster does; the token is missing or wrong, or the cluster demands none.
    """
    try:
        parts = urlsplit(address)
        well = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of a port that is no number, among others
        well = False
    if not well:
        raise UserError(f"{address}: is no address of a Jobs API; give one such as http://127.0.0.1:8265")
    address = f"{parts.scheme}://{parts.netloc}"
    near = parts.hostname in ("127.0.0.1", "::1", "localhost")
    headers = {}
    answered = _status(address, None)
    if answered == 200:
        if not near and os.environ.get("RAY_AUTH_MODE") != "disabled":
            raise UserError(
                f"{address}: it demands no token: whoever reaches it can run commands on it; start it with RAY_AUTH_MODE=token "
                "(launch/README.md), or set RAY_AUTH_MODE=disabled here to use it all the same"
            )
    elif answered == 401:
        token, place = _token()
        if token is None:
            raise UserError(
                f"{address}: the cluster demands its authentication token, and there is none here; give it in RAY_AUTH_TOKEN, "
                f"or in a file: {place}, or the one that RAY_AUTH_TOKEN_PATH names"
            )
        if _status(address, token) in (401, 403):
            raise UserError(
                f"{address}: the cluster refuses the token from {place}; it takes the one that its head was started with"
            )
        if not near and parts.scheme == "http":
            say(
                f"{address}: http does not encrypt, and the token can be read on the way; use https or a tunnel (launch/README.md)"
            )
        headers["Authorization"] = f"Bearer {token}"
    else:
        raise _stranger(address, str(answered))
    with _only(address):
        from ray.job_submission import JobSubmissionClient

        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.WARNING)  # the latter two have a level of their own
        try:
            return JobSubmissionClient(address, headers=headers)
        except (
            OSError,
            RuntimeError,
            LookupError,
            TypeError,
        ) as error:  # of whatever it says when it is asked for Ray's version
            raise _stranger(address, last_line(error)) from None


def _stranger(address: str, answer: str) -> UserError:
    return UserError(
        f"{address}: what answers there ({answer}) is no Ray dashboard; give the one of the cluster's head, port 8265 by default"
    )


class _LostError(UserError):
    """The cluster has gone away, or cannot be reached just now."""


@contextmanager
def _asking(client: Any, problem: str, remedy: str = "") -> Iterator[None]:
    """What the cluster does not answer, or refuses, in one line.

    Args:
        problem: what it means if it refuses; `remedy`: what then helps.

    Raises:
        UserError: it does.
    """
    from ray.exceptions import RayError

    try:
        yield
    except OSError as error:  # all errors of requests are
        raise _LostError(
            f"{client.get_address()}: the cluster does not answer any more ({last_line(error)}); is its head running, and can this "
            "machine reach it? Its jobs may go on: mtgen jobs list"
        ) from None
    except (RuntimeError, RayError) as error:  # of any answer that is no success, with the cluster's words in it
        raise UserError(f"{problem} ({str(error).strip()}){remedy and '; '}{remedy}") from None


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Ray prefers these variables to the address that it is given."""
    hidden = {name: os.environ.pop(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def pack_config(path: Path, assignments: list[str]) -> tuple[dict[str, Any], Config]:
    """A configuration as it travels: the keys that were written, their paths absolute; and the same, checked as far as this machine can.

    Device and precision are for the cluster to resolve.

    Raises:
        ConfigError: one line for every key at fault.
    """
    values = read_yaml(path)
    override(values, assignments)
    theirs = {key: values.pop(key) for key in ("device", "precision") if key in values}
    config = absolute(validate(values))
    return config.model_dump(
        mode="json", exclude_unset=True, exclude={"address", "device", "precision"}
    ) | theirs, config


def submit(client: Any, path: Path, assignments: list[str]) -> SubmittedJob:
    """Hand a run to the cluster: mtgen's code and the configuration travel with it; data and runs lie where its nodes find them.

    Raises:
        UserError: the cluster does not take it.
    """
    values, config = pack_config(path, assignments)
    with tempfile.TemporaryDirectory(prefix="mtgen-") as folder:
        package = PACKAGE
        shutil.copytree(package, Path(folder) / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / f"{config.name}.yaml").write_text(
            yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        with _asking(
            client,
            f"{client.get_address()}: the cluster does not take the job",
            "`ray status` and the logs of its head, dashboard_agent.log first, say more",
        ):
            job = client.submit_job(
                entrypoint=f"python -m mtgen.cli train {config.name}.yaml",
                submission_id=f"{config.name}-{secrets.token_hex(3)}",
                runtime_env={
                    "working_dir": folder,
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_SECONDS), "RAY_JOB_STOP_SIGNAL": "SIGINT"},
                },
                metadata={"mtgen": __version__, "run": config.name, "folder": str(config.folder)},
            )
    return get_job(client, job)


def _job(details: Any) -> SubmittedJob:
    def moment(milliseconds: int | None) -> datetime | None:
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None

    known = details.metadata or {}
    return SubmittedJob(
        details.submission_id,
        known.get("run", "-"),
        known.get("folder", "-"),
        str(details.status),
        moment(details.start_time),
        moment(details.end_time),
        (details.message or "").strip(),
        details.driver_exit_code,
    )


def list_submitted(client: Any) -> list[SubmittedJob]:
    """All jobs that were submitted to the cluster, the newest first.

    Raises:
        UserError: the cluster does not answer.
    """
    with _asking(client, f"{client.get_address()}: the cluster does not list its jobs"):
        found = [_job(details) for details in client.list_jobs() if details.submission_id]
    return sorted(found, key=lambda job: job.began or datetime.max.replace(tzinfo=UTC), reverse=True)


def get_job(client: Any, job: str) -> SubmittedJob:
    """One job as it is now.

    Raises:
        UserError: the cluster knows no such job, or does not answer.
    """
    with _asking(client, f"{job}: the cluster cannot say how it is"):
        try:
            return _job(client.get_job_info(job))
        except RuntimeError as error:
            if "404" not in str(error):
                raise
    known = ", ".join(other.id for other in list_submitted(client)) or "none"
    raise UserError(f"{job}: the cluster has no such job; it knows: {known}")


def logs(client: Any, job: str) -> str:
    """What a job has printed so far.

    Raises:
        UserError: the cluster knows no such job, or does not answer.
    """
    get_job(client, job)
    with _asking(client, f"{job}: the cluster does not give what it has printed"):
        return str(client.get_job_logs(job))


def follow(client: Any, job: str, write: Callable[[str], None], attempts: int = 5) -> SubmittedJob:
    """Pass on what a job prints, from its beginning, until it has ended; a connection that breaks is made again.

    Raises:
        UserError: the cluster went away.
    """
    from aiohttp import ClientError

    written = failed = 0

    async def stream() -> None:
        nonlocal written, failed
        position = 0
        async for text in client.tail_job_logs(job):
            new = text[max(written - position, 0) :]
            position += len(text)
            if new:
                write(new)
                written, failed = position, 0

    while True:
        problem: Exception | None = None
        try:
            asyncio.run(stream())
            if (now := get_job(client, job)).status in FINAL_STATUSES:
                return now
        except (OSError, RuntimeError, ClientError, _LostError) as error:  # Ray's own are RuntimeErrors
            problem = error
        failed += problem is not None
        if failed > attempts:
            raise UserError(
                f"{job}: the connection to the cluster is lost ({problem}); the job may go on: mtgen jobs logs {job} --follow"
            )
        time.sleep(1)


def stop(client: Any, job: str, wait: bool = True) -> SubmittedJob:
    """Ask a job to write a checkpoint and end; what has not ended after `STOP_GRACE_SECONDS` seconds is killed by Ray.

    Args:
        wait: until it has.

    Raises:
        UserError: the cluster knows no such job, or does not answer, perhaps while it is waited for.
    """
    now = get_job(client, job)
    if now.status not in FINAL_STATUSES:
        with _asking(client, f"{job}: the cluster does not stop it"):
            client.stop_job(job)
    while wait and now.status not in FINAL_STATUSES:
        time.sleep(0.5)
        now = get_job(client, job)
    return now
