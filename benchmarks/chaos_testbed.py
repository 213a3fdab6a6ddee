"""A cluster of two nodes on one machine with everything a run depends on: an MLflow server, a mirror, a small disk."""

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
from common import ROOT
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from mtgen.checkpointing.checkpoint import checkpoint_folders
from mtgen.launchers.ray_node import command, free_port, own_address, wait_for
from mtgen.shards.make import make
from mtgen.training.heartbeat import HeartbeatRecord, read_heartbeats
from mtgen.training.sample_log import SAMPLE_LOG_FOLDER

BATCH, LOG, SAVE = 16, 80, 160  # images per step, between two rows of metrics, between two checkpoints
DISK_BYTES = 64 * 2**20
"""Size of the disk of the runs: small, so that it can be filled."""
TIMEOUT = 900.0
"""Seconds without progress after which a run is given up."""


class Process:
    """A Python program in its own process group.

    Args:
        log: file for its output.
        environment: its environment variables.
        words: arguments of the Python interpreter.
        prefix: command that starts the interpreter.
    """

    def __init__(self, log: Path, environment: dict[str, str], *words: str, prefix: tuple[str, ...] = ()) -> None:
        self.log = log
        self.environment = environment
        self.words = words
        self.prefix = prefix
        self.start()

    def start(self) -> None:
        """Start the program, for the first time or again."""
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
        """Exit status; `None` while it runs."""
        return self._process.poll()

    @property
    def output(self) -> str:
        """Output of all starts."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def descendants(self) -> list[psutil.Process]:
        """Processes that it has started, directly or not."""
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def wait(self) -> int:
        return self._process.wait(TIMEOUT)

    def end(self) -> None:
        """Kill it and its descendants."""
        for process in [*self.descendants(), *([psutil.Process(self._process.pid)] if self.status is None else [])]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()


class Network:
    """A network namespace for one node, with a virtual cable to this machine that can be cut."""

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
        """Disconnect the cable."""
        _ip(f"link set {self._cable} down")

    def repair(self) -> None:
        """Connect the cable; does nothing if it is connected."""
        _ip(f"link set {self._cable} up")

    def close(self) -> None:
        _ip(f"netns del {self.name}")


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


class Mirror:
    """An S3-compatible server in a thread of this process; answers 503 while `failing` is set."""

    def __init__(self) -> None:
        self.failing = False
        self.refused = 0
        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else it logs every request
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
        folder: a folder with a short path, for data, logs and the small disk.
        run: the run's folder, once there is a driver.
        starts: number of times that the driver was started.
        on_driver_exit: called with the driver's exit status before it is started again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(self.disk)], check=True)
        make("shapes", folder / "data", resolution=16, train=400, test=100)
        self.network = Network()
        self.mirror = Mirror()
        self.tracking = f"http://{own_address()}:{free_port()}"
        (folder / "tmp").mkdir()
        self.environment = self._environment()
        bucket = urllib.request.Request(f"{self.mirror.address}/bucket", method="PUT")  # noqa: S310 - on loopback
        urllib.request.urlopen(bucket, timeout=30).close()  # noqa: S310
        self.starts = 0
        self.on_driver_exit: Callable[[int], None] = lambda status: None
        self.address = f"{own_address()}:{free_port()}"
        self.driver: Process | None = None
        self.store = self._start_store()
        self.head = self._start_node("head", None)
        wait_for(*self._host_and_port(), TIMEOUT)
        self.second = self._start_node("second", self.address)
        started, nodes = "Ray runtime started", (self.head, self.second)
        self.until(lambda: all(started in node.output for node in nodes), self.keep_going, "the cluster starts")

    def _environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))},
            "PYTHONPATH": str(ROOT),
            "MTGEN_CACHE": str(self.folder / "cache"),
            "OMP_WAIT_POLICY": "PASSIVE",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(self.folder / "tmp"),
            "RAY_worker_niceness": "0",  # Ray's default is 15: workers would starve on a machine with other work
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "y",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_ENDPOINT_URL": self.mirror.address,
        }

    def _host_and_port(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host, int(port)

    def _start_node(self, name: str, head: str | None) -> Process:
        """Start a node with one CPU, as a Slurm job does."""
        words = command(head, self._host_and_port()[1], span=True, cpus=1, gpus=0, dashboard=None)
        program = f"import sys; from mtgen.launchers.ray_node import run_node; sys.exit(run_node({words}, span=True))"
        prefix = self.network.prefix if head else ()
        return Process(self.folder / f"{name}.log", self.environment, "-c", program, prefix=prefix)

    def _start_store(self) -> Process:
        """Start MLflow's server."""
        options = {
            "host": own_address(),
            "port": self.tracking.rpartition(":")[2],
            "workers": "1",
            "allowed-hosts": self.tracking.rpartition("/")[2],  # the default allows private networks only
            "backend-store-uri": f"sqlite:///{self.folder}/server.db",
            "artifacts-destination": f"{self.folder}/artifacts",
        }
        environment = {
            **self.environment,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        store = Process(self.folder / "mlflow.log", environment, "-m", "mlflow", "server", *arguments)
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
            "data": {"path": str(self.folder / "data")},
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
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
        self.run = self.disk / name
        self.driver = Process(self.folder / f"{name}.log", self.environment, "-m", "mtgen.cli", "train", str(file))
        self.starts = 1

    @property
    def ended(self) -> bool:
        """Whether the driver has exited and the run is complete."""
        return self.driver is not None and self.driver.status == 0 and self.position >= self._images()

    def _images(self) -> int:
        text = (self.folder / f"{self.run.name}.yaml").read_text(encoding="utf-8")
        return int(yaml.safe_load(text)["train"]["images"])

    @property
    def segment(self) -> tuple[int, int, int]:
        """The newest log segment with a step: its number, its first position, and the position after its last step."""
        for path in sorted((self.run / SAMPLE_LOG_FOLDER).glob("*-0.jsonl"), reverse=True):
            lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
            if len(lines) > 1:
                return int(path.name[:6]), lines[0]["from"], lines[0]["from"] + BATCH * (len(lines) - 1)
        return -1, 0, 0

    @property
    def position(self) -> int:
        """Images seen by the run."""
        return self.segment[2]

    def heartbeats(self) -> list[HeartbeatRecord]:
        """Heartbeats of the workers that are alive."""
        return [heartbeat for heartbeat in read_heartbeats(self.run) if psutil.pid_exists(heartbeat.pid)]

    def checkpoints(self) -> list[Path]:
        """Folders of the run's checkpoints, the oldest first."""
        return checkpoint_folders(self.run / "checkpoints")

    def keep_going(self) -> None:
        """Restart a node or a driver that has exited, with the same command, as the user would."""
        for node in (self.head, self.second):
            if node.status is not None:
                node.start()
        if self.driver is not None and self.driver.status is not None and not self.ended:
            self.on_driver_exit(self.driver.status)
            self.driver.start()
            self.starts += 1

    def until(self, reached: Callable[[], Any], meanwhile: Callable[[], None], what: str) -> Any:
        """Wait until `reached` returns something true, and return it.

        Args:
            meanwhile: called repeatedly while waiting.
            what: description of the condition, for the error.

        Raises:
            TimeoutError: it never does; the message has the ends of all logs.
        """
        deadline = time.monotonic() + TIMEOUT
        while not (value := reached()):
            meanwhile()
            if time.monotonic() > deadline:
                files = sorted(self.folder.glob("*.log"))
                logs = "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in files)
                raise TimeoutError(f"timed out after {TIMEOUT:g} s, waiting until {what}\n{logs}")
            time.sleep(0.1)
        return value

    def close(self) -> None:
        """Stop everything, and remove the disk and the folder."""
        for process in (self.driver, self.second, self.head, self.store):
            if process is not None:
                if process.status is None:
                    process.signal(signal.SIGTERM)
                try:
                    psutil.wait_procs(process.descendants(), timeout=20)
                finally:
                    process.end()
        for leftover in psutil.process_iter():  # such as a stopped worker whose node was killed
            try:
                if leftover.environ().get("RAY_TMPDIR") == self.environment["RAY_TMPDIR"]:
                    leftover.kill()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        self.network.close()
        subprocess.run(["umount", "-l", str(self.disk)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 - a server that was started here
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
