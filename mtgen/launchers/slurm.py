"""A run as a job of Slurm: the script that asks for nodes, and what runs on them once they are there."""

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from mtgen.config import Config
from mtgen.errors import ConfigError, TrainingError
from mtgen.launchers.ray_cluster import ray_cluster
from mtgen.launchers.ray_node import command, free_port, own_address, run_node, wait_for
from mtgen.version import PACKAGE

JOIN_TIMEOUT_SECONDS = 600.0  # seconds that the nodes may take to come together


@dataclass(frozen=True)
class SlurmResources:
    """What a run asks Slurm for.

    Attributes:
        time: of one stay, in Slurm's notation (`4:00:00`); the run takes as many stays as it needs.
        cpus: of each node; `None`: all of them, for this job alone.
        warn: seconds before the end of a stay at which the run is told to write a checkpoint.
        options: further options of sbatch, such as `--partition=gpu`.
    """

    nodes: int
    gpus_per_node: int
    workers_per_node: int
    time: str
    cpus: int | None
    warn: int
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]+([:-][0-9]+){0,3}", self.time):
            raise ConfigError(
                f"--time {self.time}: possible: minutes, hours:minutes:seconds, days-hours:minutes:seconds"
            )
        for option in self.options:
            if not re.fullmatch(r"--[a-z][a-z-]*(=[\w.,:@%/+\[\]-]+)?", option):
                raise ConfigError(
                    f"--sbatch {option}: give one option of sbatch, as --name=value without spaces, such as --partition=gpu"
                )


def script(config: Config, path: Path, assignments: list[str], request: SlurmResources) -> str:
    """The script for sbatch."""
    options = [
        f"--job-name={config.name}",
        f"--nodes={request.nodes}",
        "--ntasks-per-node=1",
        *([f"--cpus-per-task={request.cpus}"] if request.cpus else ["--exclusive"]),
        *([f"--gpus-per-node={request.gpus_per_node}"] if request.gpus_per_node else []),
        f"--time={request.time}",
        f"--signal=B:USR1@{request.warn}",
        "--requeue",
        "--open-mode=append",
        f"--output={shlex.quote(str(config.folder / 'slurm-%j.log'))}",
        *request.options,
    ]
    words = [str(path.absolute()), *assignments, f"workers={config.max_workers}", f"runs={config.runs}"]
    template = resources.files("mtgen.launchers").joinpath("slurm.sbatch").read_text(encoding="utf-8")
    return Template(template).substitute(
        options="\n".join(f"#SBATCH {option}" for option in options),
        code=shlex.quote(str(PACKAGE.parent)),
        folder=shlex.quote(str(Path.cwd())),
        python=shlex.quote(sys.executable),
        train=" ".join(shlex.quote(word) for word in words),
    )


class SlurmWarnings:
    """What Slurm says while nobody else listens: before training and after it."""

    def __init__(self) -> None:
        self.heard = False
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        self.heard = True


@contextmanager
def allocation(config: Config, say: Callable[[str], None]) -> Iterator[None]:
    """A Ray cluster on all nodes of this job, which ends with the block; RAY_ADDRESS names it.

    Its token is made here and lives as long as the cluster, in the environment of the job's own processes.

    Raises:
        TrainingError: the nodes do not come together.
    """
    nodes, address, port = int(os.environ["SLURM_JOB_NUM_NODES"]), own_address(), free_port()
    cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ["SLURM_CPUS_ON_NODE"]
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": f"{address}:{port}",
    }
    log = config.folder / f"slurm-{os.environ['SLURM_JOB_ID']}-ray.log"
    words = [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cpus}",
        "--label",
    ]
    words += [f"--gpus-per-node={os.environ['SLURM_GPUS_PER_NODE']}"] if "SLURM_GPUS_PER_NODE" in os.environ else []
    config.folder.mkdir(parents=True, exist_ok=True)  # a script that was not written here comes before its run's folder
    with log.open("a", encoding="utf-8") as file:
        step = subprocess.Popen(
            [*words, sys.executable, "-m", "mtgen.launchers.slurm", address, str(port), cpus],
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,  # what a signal says to this process is not for the nodes
        )
    try:
        _together(config, nodes, step, log)
        say(f"Ray runs on {nodes} nodes, {address}:{port}; what it says is in {log}")
        yield
    finally:
        _scancel("--signal=KILL", f"{os.environ['SLURM_JOB_ID']}.0")
        try:
            step.wait(30)
        except subprocess.TimeoutExpired:
            step.kill()


def _together(config: Config, nodes: int, step: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until every node has joined.

    Raises:
        TrainingError: they do not in time, or srun has ended.
    """
    address, _, port = os.environ["RAY_ADDRESS"].partition(":")
    deadline = time.monotonic() + JOIN_TIMEOUT_SECONDS

    def look() -> None:
        if step.poll() is not None:
            raise TrainingError(
                f"srun ended with status {step.returncode} before all nodes had joined the Ray cluster; {log} says why"
            )

    wait_for(address, int(port), JOIN_TIMEOUT_SECONDS, look)
    with _joined(config, deadline, look):
        import ray

        while (there := sum(node["Alive"] for node in ray.nodes())) < nodes:
            look()
            if time.monotonic() > deadline:
                raise TrainingError(f"only {there} of {nodes} nodes joined the Ray cluster; {log} says why")
            time.sleep(0.5)


@contextmanager
def _joined(config: Config, deadline: float, meanwhile: Callable[[], None]) -> Iterator[None]:
    """This process as a part of the cluster, as soon as that can be: its head answers before it is ready."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(ray_cluster(config))
                break
            except TrainingError:
                if time.monotonic() > deadline:
                    raise
            meanwhile()
            time.sleep(1)
        yield


def requeue(say: Callable[[str], None]) -> bool:
    """Have Slurm start this job again when there is room; not if somebody cancelled it. Slurm then ends this process."""
    job = os.environ["SLURM_JOB_ID"]
    known = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, check=False
    ).stdout
    if "JobState=RUNNING" not in known:
        say("the job is being cancelled, so it is not put back into the queue")
        return False
    say("the job goes back into the queue, and goes on from its checkpoint")
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"it cannot be put back into the queue: {done.stderr.strip()}; submit it again")
        return False
    time.sleep(60)
    return True


def _scancel(*words: str) -> None:
    subprocess.run(["scancel", *words], capture_output=True, check=False)


def _warn_batch() -> bool:
    """Slurm warns the nodes of a preemption, not the script: pass it on, and stay until training has ended."""
    if os.environ["SLURM_PROCID"] == "0":
        _scancel("--batch", "--signal=USR1", os.environ["SLURM_JOB_ID"])
    return False


def _node(address: str, port: str, cpus: str) -> int:
    """What srun starts on each node: the head on the first one, which the script runs on too."""
    gpus = (
        len([g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g])
        if "SLURM_GPUS_PER_NODE" in os.environ
        else 0
    )
    head = None if os.environ["SLURM_PROCID"] == "0" else f"{address}:{port}"
    deadline = time.monotonic() + JOIN_TIMEOUT_SECONDS
    if head:
        wait_for(address, int(port), JOIN_TIMEOUT_SECONDS)
    while True:
        status = run_node(command(head, int(port), True, int(cpus), gpus, None), span=True, asked=_warn_batch)
        if time.monotonic() > deadline:
            return status
        time.sleep(
            1
        )  # the head answers before it is ready, and Ray gives up on a node that takes 30 s, as a busy one may


def available() -> bool:
    """Whether this machine can talk to a Slurm."""
    return shutil.which("sbatch") is not None


if __name__ == "__main__":
    sys.exit(_node(*sys.argv[1:]))
