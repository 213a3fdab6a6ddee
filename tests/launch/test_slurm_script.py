"""launch/slurm.sbatch is what `mtgen slurm` writes, for a checkout that may lie anywhere; a real Slurm runs it."""

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import ROOT, Command, furnish, look
from helpers.prerequisites import preventable
from helpers.slurm_cluster import Slurm, missing, slurm_cluster

SHIPPED = ROOT / "launch/slurm.sbatch"
WORDS = ("slurm", "configs/digits-32.yaml", "--nodes", "2", "--gpus-per-node", "4", "--time", "8:00:00")
HOME = """\
# This file is what `mtgen slurm configs/digits-32.yaml --nodes 2 --gpus-per-node 4 --time 8:00:00` writes,
# with MTGEN_HOME instead of its paths: the checkout with its .venv, on a file system that all nodes see. The default is
# the folder in which sbatch is called.
"""
"""What the shipped file says beyond the written one: at its top, and where its folder comes from."""


def anywhere(text: str, folder: Path) -> str:
    """A script that was written for this machine, with MTGEN_HOME in the place of its paths."""
    text = text.replace(f"--output={folder}/runs/digits-32/", "--output=").replace(
        f"exec {sys.executable}", "exec PYTHON"
    )
    for path in (folder, ROOT):
        text = re.sub(rf"{re.escape(str(path))}(/[\w./-]*)?", r'"$MTGEN_HOME\1"', text)
    text = text.replace("exec PYTHON", 'exec "$MTGEN_HOME/.venv/bin/python"')
    first, separator, rest = text.partition("#SBATCH")
    strict = "set -euo pipefail\n"
    return (
        first + HOME + separator + rest.replace(strict, strict + "export MTGEN_HOME=${MTGEN_HOME:-$SLURM_SUBMIT_DIR}\n")
    )


def test_the_shipped_script_is_the_written_one(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    command = Command(tmp_path, *WORDS).wait()
    assert command.status == 0, command.said
    written = anywhere((tmp_path / "digits-32.sbatch").read_text(encoding="utf-8"), tmp_path)
    fresh = Path(tempfile.gettempdir(), "slurm.sbatch")
    if written != SHIPPED.read_text(encoding="utf-8"):
        fresh.write_text(written, encoding="utf-8")
        pytest.fail(f"the command writes another script than {SHIPPED} by now: copy {fresh} there")


@pytest.fixture
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


def swap(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.e2e
@pytest.mark.timeout(1200)  # it waits for a machine that others use too
def test_a_real_slurm_trains_by_it_on_two_nodes(slurm: Slurm, tmp_path: Path) -> None:
    home = tmp_path / "home"
    furnish(home)
    (home / "configs").mkdir()
    (home / "run.yaml").rename(home / "configs/digits-32.yaml")
    (home / ".venv").symlink_to(sys.prefix)
    (home / "mtgen").symlink_to(ROOT / "mtgen")
    text = swap(SHIPPED.read_text(encoding="utf-8"), "#SBATCH --gpus-per-node=4\n", "")  # there are none here
    text = swap(swap(text, "workers=8", "workers=2"), "--time=8:00:00", "--time=10")
    (home / "slurm.sbatch").write_text(text, encoding="utf-8")
    variables = {"MTGEN_CACHE": str(tmp_path / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}
    job = slurm.ask(
        "sbatch", "--parsable", f"--chdir={home}", f"--export=ALL,MTGEN_HOME={home}", "slurm.sbatch", **variables
    )
    deadline = time.monotonic() + 900
    while (state := slurm.job(job)["JobState"]) in ("PENDING", "RUNNING", "COMPLETING"):
        assert time.monotonic() < deadline, slurm.logs()
        time.sleep(0.5)
    log = (home / f"slurm-{job}.log").read_text(errors="replace")
    assert state == "COMPLETED" and "Ray runs on 2 nodes" in log, log
    assert look(home, "run").facts["workers"] == 2
