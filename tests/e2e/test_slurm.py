"""A run as a job on a real Slurm of two nodes: preempted, requeued, and finished like an undisturbed run."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers.commands import ROOT, Command, checkpoints, furnish, look
from helpers.prerequisites import preventable
from helpers.slurm_cluster import CPUS, PATH, Slurm, missing, slurm_cluster

from mtgen.errors import ConfigError
from mtgen.launchers.slurm import SlurmResources

pytestmark = pytest.mark.e2e

SETTINGS = ("train.images=1600",)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if reason := missing():
        pytest.skip(reason if os.geteuid() else preventable(reason, "apt-get install slurm-wlm munge"))
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two nodes need two CPUs")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    try:
        with slurm_cluster(folder) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("slurm"))


def write(place: Path, name: str, *settings: str) -> Path:
    """The batch script of a run on both nodes."""
    words = (
        "slurm",
        "run.yaml",
        f"name={name}",
        *settings,
        "--nodes",
        "2",
        "--cpus-per-node",
        str(CPUS),
        "--time",
        "10",
        "--warn",
        "30",
    )
    command = Command(place, *words).wait()
    assert command.status == 0, command.said
    return place / f"{name}.sbatch"


def until(slurm: Slurm, log: Path, reached: Callable[[], object], seconds: float = 1200) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        said = log.read_text(errors="replace") if log.exists() else ""
        failed = any(
            word in slurm.ask("squeue", "--noheader", "--states=all", "--format=%T") for word in ("FAILED", "TIMEOUT")
        )
        assert time.monotonic() < deadline and not failed, f"{said}\n{slurm.ask('squeue')}\n{slurm.logs()}"
        time.sleep(0.2)


@pytest.mark.timeout(2400)  # other processes use the system too
def test_a_preempted_job_requeues_itself_and_ends_like_an_undisturbed_one(slurm: Slurm, place: Path) -> None:
    script = write(place, "preempted", *SETTINGS)
    variables = {"PYTHONPATH": str(ROOT), "MTGEN_CACHE": str(place / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}
    job = slurm.ask("sbatch", "--parsable", str(script), **variables)
    log = place / "runs" / "preempted" / f"slurm-{job}.log"
    until(slurm, log, lambda: checkpoints(place, "preempted"))
    slurm.ask("sbatch", "--partition=high", "--nodes=2", "--ntasks-per-node=1", "--output=/dev/null", "--wrap=true")
    until(slurm, log, lambda: slurm.job(job)["JobState"] == "PENDING")
    at = int(checkpoints(place, "preempted")[-1].name)
    assert 0 < at < 1600 and "stopping after a checkpoint" in log.read_text()
    slurm.ask(
        "scontrol", "update", f"JobId={job}", "StartTime=now"
    )  # by default Slurm waits two minutes before it restarts a job
    until(slurm, log, lambda: slurm.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"))
    known = slurm.job(job)
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "1"), log.read_text()
    run = look(place, "preempted")
    assert run.starts == [0, at] and run.facts["workers"] == 2

    undisturbed = Command(place, "train", "run.yaml", "name=undisturbed", "workers=2", *SETTINGS).wait()
    assert undisturbed.status == 0, undisturbed.said
    other = look(place, "undisturbed")
    assert (
        run.facts["digest"] == other.facts["digest"] and run.facts["digest_averaged"] == other.facts["digest_averaged"]
    )
    left = [" ".join(row.info["cmdline"] or []) for row in psutil.process_iter(["cmdline"])]
    assert not any("mtgen.launchers.slurm" in words for words in left), "Ray's nodes live on"


@pytest.mark.parametrize("option", ["--partition=gpu\n#SBATCH --uid=0", "--wrap=a b", "partition", "--x=$(id)"])
def test_an_option_that_would_add_another_is_rejected(option: str) -> None:
    with pytest.raises(ConfigError, match="sbatch"):
        SlurmResources(1, 0, 1, "10", 1, 30, (option,))


@pytest.mark.parametrize("time", ["soon", "10\n#SBATCH --uid=0", "1h"])
def test_an_invalid_time_is_rejected(time: str) -> None:
    with pytest.raises(ConfigError, match="--time"):
        SlurmResources(1, 0, 1, time, 1, 30)


def test_bash_parses_the_script_whatever_the_names(place: Path) -> None:
    odd = place / "it's an odd $(place)"
    odd.mkdir(exist_ok=True)
    script = write(place, "odd", f"runs={odd}")
    text = script.read_text(encoding="utf-8")
    assert "workers=2" in text and "#SBATCH --requeue" in text
    marked = text.replace("exec ", "printf '%s\\n' ", 1).replace("cd ", ": ", 1)
    said = subprocess.run(
        ["bash", "-c", marked], capture_output=True, text=True, check=True, env={"PATH": PATH}
    ).stdout.splitlines()
    assert f"runs={odd}" in said
