"""A cluster of two nodes on this machine with all that a run leans on: a store for MLflow, a mirror, a small disk; and its driver."""

import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from mtgen.checkpointing.checkpoint import checkpoint_folders
from mtgen.launchers.ray_node import command, free_port, own_address, wait_for
from mtgen.shards.make import make
from mtgen.training.heartbeat import HeartbeatRecord, read_heartbeats
from mtgen.training.sample_log import SAMPLE_LOG_FOLDER

ROOT = Path(__file__).resolve().parents[1]
BATCH, LOG, SAVE = 16, 80, 160  # images a step, between two rows of numbers, between two checkpoints
DISK = 64 * 2**20
"""Bytes of the disk that the runs lie on: small, so that it can be filled."""
PATIENCE = 900.0
"""Seconds after which a run that does not go on is given up."""


class Process:
    """A Python program in a process group of its own, that is started again by `start`; `prefix`: a command that starts it."""

    def __init__(self, log: Path, environment: dict[str, str], *words: str, prefix: tuple[str, ...] = ()) -> None:
        self.log = log
        self.environment = environment
        self.words = words
        self.prefix = prefix
        self.start()

    def start(self) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [*self.prefix, sys.executable, *self.words],
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                cwd=self.log.parent,
                env=self.environment,
                process_group=0,
            )

    @property
    def status(self) -> int | None:
        return self._process.poll()

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def wait(self) -> int:
        return self._process.wait(PATIENCE)

    def end(self) -> None:
        """Kill it and all that it has started."""
        for process in [*self.family(), *([psutil.Process(self._process.pid)] if self.status is None else [])]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()


class Network:
    """A network of its own for one node (a namespace of the kernel's), with a cable to this machine that can be pulled out."""

    def __init__(self) -> None:
        self.name = f"mtgen{os.getpid()}"
        self._cable = f"mt{os.getpid()}"
        subnet = f"10.{77 + os.getpid() % 100}.0"
        for words in (
            f"netns add {self.name}",
            f"link add {self._cable} type veth peer name eth0 netns {self.name}",
            f"addr add {subnet}.1/24 dev {self._cable}",
            f"link set {self._cable} up",
            f"-n {self.name} addr add {subnet}.2/24 dev eth0",
            f"-n {self.name} link set lo up",
            f"-n {self.name} link set eth0 up",
            f"-n {self.name} route add default via {subnet}.1",
        ):
            _ip(words)
        self.prefix = ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Pull the cable out."""
        _ip(f"link set {self._cable} down")

    def mend(self) -> None:
        """Plug it in again; nothing happens where it is in."""
        _ip(f"link set {self._cable} up")

    def close(self) -> None:
        _ip(f"netns del {self.name}")


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


class Mirror:
    """An S3-compatible server, in a thread of this process, that can be told to answer 503."""

    def __init__(self) -> None:
        self.failing = False
        self.refused = 0
        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else it prints every request
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(own_address(), 0, self._answer, threaded=True)
        self.address = f"http://{own_address()}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ: Any, start: Any) -> Any:
        if self.failing:
            self.refused += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Service Unavailable", [("Content-Length", "0")])
            return []
        return self._app(environ, start)


class Testbed:
    """Everything that a run needs, and the run's driver.

    Attributes:
        place: a folder with a short path, for data, logs and the small disk.
        run: the run's folder, once there is a driver.
        position: images seen by the run as it is now.
        starts: how often a driver was started.
        after_end: told the exit status of a driver before it is started again.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.disk = place / "disk"
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "chaos", str(self.disk)], check=True)
        make("shapes", place / "data", resolution=16, train=400, test=100)
        self.network = Network()
        self.mirror = Mirror()
        self.tracking = f"http://{own_address()}:{free_port()}"
        (place / "tmp").mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))},
            "PYTHONPATH": str(ROOT),
            "MTGEN_CACHE": str(place / "cache"),
            "OMP_WAIT_POLICY": "PASSIVE",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(place / "tmp"),
            "RAY_worker_niceness": "0",  # Ray's own is 15: on a machine that has other work too, a worker would starve
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "y",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_ENDPOINT_URL": self.mirror.address,
        }
        bucket = urllib.request.Request(f"{self.mirror.address}/bucket", method="PUT")  # noqa: S310 - on loopback
        urllib.request.urlopen(bucket, timeout=30).close()  # noqa: S310
        self.starts = 0
        self.after_end: Callable[[int], None] = lambda status: None
        self.address = f"{own_address()}:{free_port()}"
        self.driver: Process | None = None
        self.store = self._store()
        self.head = self._node("head", None)
        wait_for(*self._at(), PATIENCE)
        self.second = self._node("second", self.address)
        started = "Ray runtime started"
        self.until(
            lambda: started in self.head.said and started in self.second.said, self.keep_going, "the cluster starts"
        )

    def _at(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host, int(port)

    def _node(self, name: str, head: str | None) -> Process:
        """A node of one CPU, as a job of Slurm has it."""
        words = command(head, self._at()[1], span=True, cpus=1, gpus=0, dashboard=None)
        program = f"import sys; from mtgen.launchers.ray_node import run_node; sys.exit(run_node({words}, span=True))"
        return Process(
            self.place / f"{name}.log", self.environment, "-c", program, prefix=self.network.prefix if head else ()
        )

    def _store(self) -> Process:
        words = (
            "-m",
            "mlflow",
            "server",
            "--host",
            own_address(),
            "--port",
            self.tracking.rpartition(":")[2],
            "--workers",
            "1",
        )
        hosts = ("--allowed-hosts", self.tracking.rpartition("/")[2])  # its own rule allows private networks only
        files = (
            "--backend-store-uri",
            f"sqlite:///{self.place}/server.db",
            "--artifacts-destination",
            f"{self.place}/artifacts",
        )
        environment = {
            **self.environment,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        store = Process(self.place / "mlflow.log", environment, *words, *hosts, *files)
        self.until(lambda: _answers(f"{self.tracking}/health"), lambda: None, "MLflow's server starts")
        return store

    def begin(self, name: str, images: int, seed: int, hang: float) -> None:
        """Start the driver of a run."""
        configuration = {
            "name": name,
            "runs": str(self.disk),
            "device": "cpu",
            "precision": "fp32",
            "seed": seed,
            "workers": 2,
            "address": self.address,
            "resolution": 8,
            "batch_size": BATCH,
            "data": {"path": str(self.place / "data")},
            "generator": {"widths": [8, 8], "latent": 4},
            "discriminator": {"widths": [8, 8], "decoder": 8, "embedding": 8},
            "tasks": {task: {} for task in ("generation", "classification", "segmentation", "reconstruction")},
            "train": {
                "images": images,
                "warmup": 0,
                "log_every": LOG,
                "max_restarts": 10**6,
                "heartbeat_timeout": hang,
                "log_samples": True,
            },
            "checkpoint": {"every": SAVE, "keep": 4, "mirror": "s3://bucket/runs"},
            "evaluate": {"every": 10**9},
            "tracking": {"uri": self.tracking},
        }
        file = self.place / f"{name}.yaml"
        file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
        self.run = self.disk / name
        self.driver = Process(self.place / f"{name}.log", self.environment, "-m", "mtgen.cli", "train", str(file))
        self.starts = 1

    @property
    def ended(self) -> bool:
        """Whether the driver said that the run is finished."""
        return self.driver is not None and self.driver.status == 0 and self.position >= self._images()

    def _images(self) -> int:
        return int(
            yaml.safe_load((self.place / f"{self.run.name}.yaml").read_text(encoding="utf-8"))["train"]["images"]
        )

    @property
    def part(self) -> tuple[int, int, int]:
        """Number of the newest part of the run in which a step was done, and the positions where it began and is now."""
        for path in sorted((self.run / SAMPLE_LOG_FOLDER).glob("*-0.jsonl"), reverse=True):
            lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
            if len(lines) > 1:
                return int(path.name[:6]), lines[0]["from"], lines[0]["from"] + BATCH * (len(lines) - 1)
        return -1, 0, 0

    @property
    def position(self) -> int:
        return self.part[2]

    def beats(self) -> list[HeartbeatRecord]:
        """What the workers say of themselves that make steps now."""
        return [beat for beat in read_heartbeats(self.run) if psutil.pid_exists(beat.pid)]

    def checkpoints(self) -> list[Path]:
        return checkpoint_folders(self.run / "checkpoints")

    def keep_going(self) -> None:
        """What whoever launched all this does: a node or a driver that has ended is started again, with the same command."""
        for node in (self.head, self.second):
            if node.status is not None:
                node.start()
        if self.driver is not None and self.driver.status is not None and not self.ended:
            self.after_end(self.driver.status)
            self.driver.start()
            self.starts += 1

    def until(self, reached: Callable[[], Any], meanwhile: Callable[[], None], what: str) -> Any:
        """Wait for something to come true.

        Raises:
            TimeoutError: it does not; the last words of all are in the message.
        """
        deadline = time.monotonic() + PATIENCE
        while not (value := reached()):
            meanwhile()
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(self.place.glob("*.log"))
                )
                raise TimeoutError(f"waited {PATIENCE:g} s in vain: {what}\n{logs}")
            time.sleep(0.1)
        return value

    def close(self) -> None:
        """End everything, and take the disk away."""
        for process in (self.driver, self.second, self.head, self.store):
            if process is not None:
                process.signal(signal.SIGTERM) if process.status is None else None
                try:
                    psutil.wait_procs(process.family(), timeout=20)
                finally:
                    process.end()
        for process in psutil.process_iter():  # such as a worker that was stopped when its node was killed
            try:
                if process.environ().get("RAY_TMPDIR") == self.environment["RAY_TMPDIR"]:
                    process.kill()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        self.network.close()
        subprocess.run(["umount", "-l", str(self.disk)], check=False)
        shutil.rmtree(self.place, ignore_errors=True)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 - a server of our own
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
