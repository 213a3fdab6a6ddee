"""A real Slurm of two local nodes with its own configuration, munge and ports; it ends with the test."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CPUS = max((os.cpu_count() or 1) // 2, 1)
"""Of each node: as many as one of two workers has where they share this machine."""

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
SlurmctldDebug=info
MpiDefault=none
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port={first},{second} CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 GraceTime=120 OverSubscribe=NO State=UP
PartitionName=high Nodes=n[1-2] PriorityTier=10 OverSubscribe=NO State=UP
"""


def missing() -> str | None:
    """Why there can be no Slurm here; `None`: there can."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if absent:
        return f"no {', '.join(absent)} here"
    return "slurmd has to be started by root" if os.geteuid() else None


def _ports(count: int) -> list[int]:
    probes = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Slurm:
    """What a user of the cluster can do.

    Attributes:
        environment: variables that point Slurm's commands to this cluster.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def ask(self, *words: str, **variables: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        done = subprocess.run(
            words,
            env={**environment, **self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, ..."""
        return dict(
            word.split("=", 1)
            for word in self.ask("scontrol", "--oneliner", "show", "job", number).split()
            if "=" in word
        )

    def logs(self) -> str:
        return "\n".join(
            f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(self.folder.glob("*.log"))
        )


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Slurm]:
    """A running cluster whose files are in `folder`, which has to have a short path."""
    controller, first, second = _ports(3)
    values = {"host": socket.gethostname().split(".")[0], "folder": folder, "cpus": CPUS}
    values |= {"controller": controller, "first": first, "second": second}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**values), encoding="utf-8")
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    slurm = Slurm(folder)
    munge = [
        f"--{what}={folder}/munge.{what.split('-')[0]}"
        for what in ("socket", "key-file", "pid-file", "log-file", "seed-file")
    ]
    daemons = [
        ["munged", "--foreground", "--force", *munge],
        ["slurmctld", "-D", "-f", str(folder / "slurm.conf")],
        *(["slurmd", "-D", "-N", node, "-f", str(folder / "slurm.conf")] for node in ("n1", "n2")),
    ]
    started = []
    try:
        for words in daemons:
            with (folder / f"{words[0]}-{len(started)}.out.log").open("w") as out:
                environment = {**os.environ, **slurm.environment}
                started.append(subprocess.Popen(words, env=environment, stdout=out, stderr=out, process_group=0))
            time.sleep(0.5)
        deadline = time.monotonic() + 120
        while slurm.ask("sinfo", "--noheader", "--format=%t %D", "--partition=low") != "idle 2":
            assert time.monotonic() < deadline, slurm.logs()
            time.sleep(0.5)
        yield slurm
    finally:
        for daemon in reversed(started):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in psutil.process_iter():  # of a job that a test which failed has left
            try:
                if process.environ().get("SLURM_CONF") == slurm.environment["SLURM_CONF"]:
                    process.kill()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
