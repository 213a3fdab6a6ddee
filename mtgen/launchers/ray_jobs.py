"""A run as a job on a Ray cluster: submit it through the Jobs API with code and configuration, follow it, stop it."""

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
"""Seconds that a stopped job has to save its checkpoint before Ray kills it; Ray's default is 3."""
FINAL_STATUSES = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class SubmittedJob:
    """A submitted job as the cluster reports it; `exit_status` is that of its command, once it has ended."""

    id: str
    run: str
    folder: str
    status: str
    began: datetime | None
    ended: datetime | None
    message: str
    exit_status: int | None


def _token() -> tuple[str | None, str]:
    """Ray's authentication token, or `None`, from where Ray looks for it, and the name of that variable or file."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip() or None, str(path)
    except FileNotFoundError:
        if given:
            raise UserError(
                f"RAY_AUTH_TOKEN_PATH={given}: the file does not exist; copy the cluster's token there and chmod 600 it"
            ) from None
        return None, str(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise UserError(f"{path}: Ray's token cannot be read ({reason}); fix or replace the file") from None


def _status(address: str, token: str | None) -> int:
    """HTTP status of the cluster's answer to a request for its jobs.

    Raises:
        UserError: nothing answers.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{address}/api/jobs/", headers=headers)  # noqa: S310 - http or https
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the same
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, HTTPException, UnicodeError) as error:  # HTTPException: the answer is not HTTP
        reason = getattr(error, "reason", None) or last_line(error)
        raise UserError(
            f"{address}: no Ray cluster answers ({reason}); check that its head runs with a dashboard. "
            "launch/README.md explains how to start a cluster and how to reach it"
        ) from None


def connect(address: str, say: JobsSay) -> Any:
    """A client of the Jobs API at `address`, such as http://127.0.0.1:8265.

    A remote cluster without authentication is rejected: everyone who reaches its Jobs API can run commands on it.

    Raises:
        UserError: no Ray cluster answers; the token is missing or wrong, or a remote cluster does not require one.
    """
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # for example, the port is not a number
        valid = False
    if not valid:
        raise UserError(f"{address}: not an address of a Jobs API; use one such as http://127.0.0.1:8265")
    address = f"{parts.scheme}://{parts.netloc}"
    is_local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    headers = {}
    answered = _status(address, None)
    if answered == 200:
        if not is_local and os.environ.get("RAY_AUTH_MODE") != "disabled":
            raise UserError(
                f"{address}: requires no token, so anyone who reaches it can run commands on it; start the cluster "
                "with RAY_AUTH_MODE=token (launch/README.md), or set RAY_AUTH_MODE=disabled here to use it anyway"
            )
    elif answered == 401:
        token, source = _token()
        if token is None:
            raise UserError(
                f"{address}: the cluster requires its authentication token; set RAY_AUTH_TOKEN, or put the token into "
                f"{source} or a file that RAY_AUTH_TOKEN_PATH names"
            )
        if _status(address, token) in (401, 403):
            raise UserError(
                f"{address}: the cluster rejects the token from {source}; use the token that its head was started with"
            )
        if not is_local and parts.scheme == "http":
            say(
                f"warning: {address}: http is not encrypted, so the token can be intercepted; use https or a tunnel "
                "(launch/README.md)"
            )
        headers["Authorization"] = f"Bearer {token}"
    else:
        raise _not_a_dashboard(address, str(answered))
    with _without_addresses():
        from ray.job_submission import JobSubmissionClient

        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.WARNING)  # the latter two have a level of their own
        try:
            return JobSubmissionClient(address, headers=headers)
        # depending on what it answers to a request for Ray's version
        except (OSError, RuntimeError, LookupError, TypeError) as error:
            raise _not_a_dashboard(address, last_line(error)) from None


def _not_a_dashboard(address: str, answer: str) -> UserError:
    return UserError(
        f"{address}: not a Ray dashboard (answer: {answer}); use that of the cluster's head, by default on port 8265"
    )


class _LostError(UserError):
    """The connection to the cluster is lost."""


@contextmanager
def _asking(client: Any, problem: str, remedy: str = "") -> Iterator[None]:
    """Turn the errors of a request to the cluster into one line each.

    Args:
        problem: message if the cluster refuses the request.
        remedy: what helps in that case.

    Raises:
        UserError: the cluster does not answer, or refuses.
    """
    from ray.exceptions import RayError

    try:
        yield
    except OSError as error:  # the base class of all errors of `requests`
        raise _LostError(
            f"{client.get_address()}: the cluster no longer answers ({last_line(error)}); check that its head runs and "
            "can be reached. Jobs may still be running: mtgen jobs list"
        ) from None
    except (RuntimeError, RayError) as error:  # any unsuccessful answer, with the cluster's message
        raise UserError(f"{problem} ({str(error).strip()}){remedy and '; '}{remedy}") from None


@contextmanager
def _without_addresses() -> Iterator[None]:
    """Hide the variables that Ray prefers over the given address."""
    hidden = {name: os.environ.pop(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def pack_config(path: Path, assignments: list[str]) -> tuple[dict[str, Any], Config]:
    """A configuration to send to a cluster: the keys that are set, with absolute paths; and the validated `Config`.

    Device and precision are resolved on the cluster.

    Raises:
        ConfigError: one line for each invalid key.
    """
    values = read_yaml(path)
    override(values, assignments)
    theirs = {key: values.pop(key) for key in ("device", "precision") if key in values}
    config = absolute(validate(values))
    return config.model_dump(
        mode="json", exclude_unset=True, exclude={"address", "device", "precision"}
    ) | theirs, config


def submit(client: Any, path: Path, assignments: list[str]) -> SubmittedJob:
    """Submit a run with mtgen's code and the configuration; data and runs must be in folders that the nodes can access.

    Raises:
        UserError: the cluster does not accept the job.
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
            f"{client.get_address()}: the cluster does not accept the job",
            "see `ray status` and the logs of its head, first dashboard_agent.log",
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
    """All jobs that were submitted to the cluster, newest first.

    Raises:
        UserError: the cluster does not answer.
    """
    with _asking(client, f"{client.get_address()}: the cluster does not list its jobs"):
        found = [_job(details) for details in client.list_jobs() if details.submission_id]
    return sorted(found, key=lambda job: job.began or datetime.max.replace(tzinfo=UTC), reverse=True)


def get_job(client: Any, job: str) -> SubmittedJob:
    """The current state of a job.

    Raises:
        UserError: the job does not exist, or the cluster does not answer.
    """
    with _asking(client, f"{job}: the cluster does not report its state"):
        try:
            return _job(client.get_job_info(job))
        except RuntimeError as error:
            if "404" not in str(error):
                raise
    known = ", ".join(other.id for other in list_submitted(client)) or "none"
    raise UserError(f"{job}: the job does not exist on the cluster; jobs: {known}")


def logs(client: Any, job: str) -> str:
    """The output of a job so far.

    Raises:
        UserError: the job does not exist, or the cluster does not answer.
    """
    get_job(client, job)
    with _asking(client, f"{job}: the cluster does not return its output"):
        return str(client.get_job_logs(job))


def follow(client: Any, job: str, write: Callable[[str], None], attempts: int = 5) -> SubmittedJob:
    """Stream the output of a job from its beginning until it ends, and reconnect if the connection breaks.

    Raises:
        UserError: the connection is lost for good.
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
        except (OSError, RuntimeError, ClientError, _LostError) as error:  # Ray raises RuntimeError
            problem = error
        failed += problem is not None
        if failed > attempts:
            raise UserError(
                f"{job}: the connection to the cluster is lost ({problem}); the job may still be running: "
                f"mtgen jobs logs {job} --follow"
            )
        time.sleep(1)


def stop(client: Any, job: str, wait: bool = True) -> SubmittedJob:
    """Stop a job after a checkpoint; Ray kills it if it has not ended after `STOP_GRACE_SECONDS`.

    Args:
        wait: whether to wait until it has ended.

    Raises:
        UserError: the job does not exist, or the cluster does not answer, possibly while this function waits.
    """
    now = get_job(client, job)
    if now.status not in FINAL_STATUSES:
        with _asking(client, f"{job}: the cluster does not stop it"):
            client.stop_job(job)
    while wait and now.status not in FINAL_STATUSES:
        time.sleep(0.5)
        now = get_job(client, job)
    return now
