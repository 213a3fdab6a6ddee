"""launch/ray-job.sh hands Ray the job that `mtgen submit` hands it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import IMAGES, ROOT, Command, furnish, look

from mtgen.launchers import ray_jobs
from mtgen.launchers.ray_node import free_port
from mtgen.launchers.ray_session import session_folder

SCRIPT = ROOT / "launch/ray-job.sh"
CONFIG = "name: digits # a comment\ndata: {path: /shared/digits}\n"
NOTE = """#!/bin/sh
printf '%s\\n' "$@" > "$NOTES/words"
while [ "$1" != --working-dir ]; do shift; done
cp -R "$2" "$NOTES/folder"
"""


class Client:
    """A Jobs API that keeps what it is handed."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes
        self.job: dict[str, Any] = {}

    def get_address(self) -> str:
        return "http://127.0.0.1:8265"

    def submit_job(self, **job: Any) -> str:
        shutil.copytree(job["runtime_env"].pop("working_dir"), self.notes)
        self.job = job
        return str(job["submission_id"])

    def get_job_info(self, job: str) -> Any:
        return Details(job, self.job["metadata"])


@dataclass
class Details:
    """As much of Ray's as a submission looks at."""

    submission_id: str
    metadata: dict[str, str]
    status: str = "PENDING"
    start_time: int | None = None
    end_time: int | None = None
    message: str | None = None
    driver_exit_code: int | None = None


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def by_script(tmp_path: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """The script with a `ray` that only notes what it is asked for."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ray").write_text(NOTE, encoding="utf-8")
    (tmp_path / "bin/ray").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "NOTES": str(tmp_path)}
    command = [str(SCRIPT), *words]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_the_job_is_that_of_mtgen_submit(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text(CONFIG, encoding="utf-8")
    done = by_script(tmp_path, "some.yaml", "runs=/shared/runs", "workers=2")
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "words").read_text(encoding="utf-8").splitlines()
    given, entrypoint = dict(zip(words[2:10:2], words[3:10:2], strict=True)), words[words.index("--") + 1 :]

    client = Client(tmp_path / "theirs")
    ray_jobs.submit(client, tmp_path / "some.yaml", ["runs=/shared/runs", "workers=2"])
    assert json.loads(given["--runtime-env-json"]) == client.job["runtime_env"]
    assert json.loads(given["--metadata-json"]) == client.job["metadata"]
    assert given["--submission-id"].rpartition("-")[0] == client.job["submission_id"].rpartition("-")[0] == "digits"
    assert " ".join(entrypoint[:5]) == client.job["entrypoint"]  # which has the overrides in its file
    assert entrypoint[5:] == ["runs=/shared/runs", "runs=/shared/runs", "workers=2"]
    ours, theirs = tmp_path / "folder", tmp_path / "theirs"
    assert files(ours) == files(theirs) and "mtgen/configs/digits-32.yaml" in files(ours)
    assert (
        yaml.safe_load((ours / "digits.yaml").read_text()).items()
        <= yaml.safe_load((theirs / "digits.yaml").read_text()).items()
    )


def test_a_run_is_written_where_the_command_is_typed_unless_it_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text(CONFIG, encoding="utf-8")
    assert by_script(tmp_path, "some.yaml", "name=other").returncode == 0
    words = (tmp_path / "words").read_text(encoding="utf-8").splitlines()
    assert words[-3:] == ["other.yaml", f"runs={tmp_path}/runs", "name=other"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "usage: launch/ray-job.sh CONFIG"),
        (("missing.yaml",), "usage: launch/ray-job.sh CONFIG"),
        (("some.yaml", "runs=here"), "an absolute folder; here: name=digits runs=here"),
        (("some.yaml", 'runs=/a", "x": "'), "an absolute folder"),
        (("some.yaml", "name=../up"), "a plain name"),
    ],
)
def test_what_cannot_be_a_job_is_refused(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text(CONFIG, encoding="utf-8")
    done = by_script(tmp_path, *words)
    assert done.returncode == 2 and said in done.stderr
    assert not (tmp_path / "words").exists()


TOKEN = "a-token-of-these-tests-" + "x" * 32


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """The address of the Jobs API of a real head that demands a token."""
    port = free_port()
    words = ("cluster", "head", "--port", str(free_port()), "--dashboard-port", str(port))
    with session_folder() as folder:  # Ray gives a job the address of the newest cluster whose files are there
        command = Command(tmp_path, *words, RAY_AUTH_TOKEN=TOKEN, **folder)
        try:
            command.until(lambda: "Ray runtime started" in command.said)
            yield f"http://127.0.0.1:{port}"
        finally:
            command.process.terminate()
            command.wait()


@pytest.mark.e2e
def test_a_real_cluster_trains_by_it(head: str, tmp_path: Path) -> None:
    place = furnish(tmp_path / "place")
    ray = str(Path(sys.executable).parent)
    environment = {**os.environ, "RAY_API_SERVER_ADDRESS": head, "RAY_AUTH_TOKEN": TOKEN, "OMP_WAIT_POLICY": "PASSIVE"}
    environment |= {"PATH": f"{ray}:{os.environ['PATH']}", "MTGEN_CACHE": str(place / "cache")}
    words = [str(SCRIPT), "run.yaml", "workers=1"]
    done = subprocess.run(words, env=environment, cwd=place, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert look(place, "run").facts["position"] == IMAGES
