"""A run as a Slurm job: the batch script, and the Ray cluster on the nodes that it gets."""

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

JOIN_TIMEOUT_SECONDS = 600.0
"""Seconds in which all nodes must join the cluster."""


@dataclass(frozen=True)
class SlurmResources:
    """The resources that a run requests from Slurm.

    Attributes:
        time: time limit per allocation in Slurm's notation (`4:00:00`); the run is requeued until it finishes.
        cpus: CPUs of each node; `None`: all, with exclusive use of the nodes.
        warn: seconds before the time limit at which to save a checkpoint.
        options: further sbatch options, such as `--partition=gpu`.
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
                f"--time {self.time}: not a time limit; possible: minutes, hours:minutes:seconds, "
                "days-hours:minutes:seconds"
            )
        for option in self.options:
            if not re.fullmatch(r"--[a-z][a-z-]*(=[\w.,:@%/+\[\]-]+)?", option):
                raise ConfigError(
                    f"--sbatch {option}: not an sbatch option; write one as --name=value without spaces, such as "
                    "--partition=gpu"
                )


def script(config: Config, path: Path, assignments: list[str], request: SlurmResources) -> str:
    """The batch script of a run."""
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
    """Handles Slurm's signals before and after training, when the driver does not."""

    def __init__(self) -> None:
        self.heard = False
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        self.heard = True


@contextmanager
def allocation(config: Config, say: Callable[[str], None]) -> Iterator[None]:
    """Start a Ray cluster on all nodes of this job, and set RAY_ADDRESS to it; the cluster ends with the context.

    Its token is created here; only the environment of the job's processes holds it.

    Raises:
        TrainingError: not all nodes join.
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
    config.folder.mkdir(parents=True, exist_ok=True)  # missing if the script was written elsewhere
    with log.open("a", encoding="utf-8") as file:
        step = subprocess.Popen(
            [*words, sys.executable, "-m", "mtgen.launchers.slurm", address, str(port), cpus],
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,  # so that signals to this process do not reach the nodes
        )
    try:
        _wait_for_nodes(config, nodes, step, log)
        say(f"Ray runs on {nodes} nodes at {address}:{port}; its log is {log}")
        yield
    finally:
        _scancel("--signal=KILL", f"{os.environ['SLURM_JOB_ID']}.0")
        try:
            step.wait(30)
        except subprocess.TimeoutExpired:
            step.kill()


def _wait_for_nodes(config: Config, nodes: int, step: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until every node has joined.

    Raises:
        TrainingError: the time is over, or srun has ended.
    """
    address, _, port = os.environ["RAY_ADDRESS"].partition(":")
    deadline = time.monotonic() + JOIN_TIMEOUT_SECONDS

    def check_srun() -> None:
        if step.poll() is not None:
            raise TrainingError(
                f"srun ended with status {step.returncode} before all nodes had joined the Ray cluster; see {log}"
            )

    wait_for(address, int(port), JOIN_TIMEOUT_SECONDS, check_srun)
    with _joined(config, deadline, check_srun):
        import ray

        while (alive := sum(node["Alive"] for node in ray.nodes())) < nodes:
            check_srun()
            if time.monotonic() > deadline:
                raise TrainingError(f"only {alive} of {nodes} nodes joined the Ray cluster; see {log}")
            time.sleep(0.5)


@contextmanager
def _joined(config: Config, deadline: float, meanwhile: Callable[[], None]) -> Iterator[None]:
    """Connect this process to the cluster, with retries: the head answers before it is ready."""
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
    """Requeue this job unless it is being cancelled; Slurm then ends this process.

    Returns:
        Whether the job was requeued.
    """
    job = os.environ["SLURM_JOB_ID"]
    show = ["scontrol", "--oneliner", "show", "job", job]
    if "JobState=RUNNING" not in subprocess.run(show, capture_output=True, text=True, check=False).stdout:
        say("the job is being cancelled, so it is not requeued")
        return False
    say("the job is requeued and will resume from its checkpoint")
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"the job cannot be requeued ({done.stderr.strip()}); submit it again")
        return False
    time.sleep(60)
    return True


def _scancel(*words: str) -> None:
    subprocess.run(["scancel", *words], capture_output=True, check=False)


def _warn_batch() -> bool:
    """Pass on Slurm's warning of a preemption, which only nodes get, to the script; return that the node stays."""
    if os.environ["SLURM_PROCID"] == "0":
        _scancel("--batch", "--signal=USR1", os.environ["SLURM_JOB_ID"])
    return False


def _node(address: str, port: str, cpus: str) -> int:
    """Run a node of the Ray cluster; srun starts this on each node. The first, where the script runs, is the head."""
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
        # The head answers before it is ready, and Ray gives up on nodes that take over 30 s to start.
        time.sleep(1)


def available() -> bool:
    """Whether this system has Slurm's commands."""
    return shutil.which("sbatch") is not None


if __name__ == "__main__":
    sys.exit(_node(*sys.argv[1:]))
