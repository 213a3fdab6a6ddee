"""A worker that is stopped, as in a hang, is found, named and replaced, and the run ends as an undisturbed one."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers.commands import Command, checkpoints, furnish, look, trained

from mtgen.config import Config
from mtgen.launchers import worker_processes
from mtgen.launchers.ray_cluster import ray_cluster
from mtgen.training.heartbeat import HeartbeatRecord

pytestmark = pytest.mark.e2e


def test_a_stopped_worker_is_named_and_replaced(tmp_path: Path) -> None:
    place = furnish(tmp_path)
    undisturbed = trained(place, "undisturbed", 2)
    command = Command(place, "train", "run.yaml", "name=stopped", "workers=2", "train.heartbeat_timeout=5")
    try:
        command.until(lambda: checkpoints(place, "stopped"))
        hung = command.workers()[1]
        hung.send_signal(signal.SIGSTOP)
        assert command.wait().status == 0, command.said
    finally:
        if command.process.poll() is None:
            for process in [*command.family(), command.process]:
                process.kill()
            command.process.wait()
    assert f"process {hung.pid}) made no step for 5 s" in " ".join(command.said.split()), command.said
    (stacks,) = (place / "runs" / "stopped").glob("stacks-*.txt")
    text = stacks.read_text()
    assert f"process {hung.pid}) made no step" in text.splitlines()[0] and "state 'stopped'" in text
    assert "hread 0x" in text, "those of the worker that waited"
    run = look(place, "stopped")
    assert run.facts["digest"] == undisturbed.facts["digest"] and run.losses == undisturbed.losses
    assert len(run.starts) == 2 and run.starts[1] > 0


def test_a_node_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate({"name": "run", "runs": str(tmp_path), "data": {"path": "data"}})
    hung = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with ray_cluster(config, 1):
            import ray

            beat = HeartbeatRecord(
                0, 1, 1, "", hung.pid, psutil.Process(hung.pid).create_time(), ray.get_runtime_context().get_node_id()
            )
            node = next(child for child in psutil.Process().children(recursive=True) if child.name() == "raylet")
            node.suspend()
            monkeypatch.setattr(worker_processes, "NODE_TIMEOUT_SECONDS", 2.0)
            with pytest.raises(TimeoutError):
                worker_processes.kill(beat)
            assert hung.poll() is None
            node.resume()
            monkeypatch.undo()
            assert worker_processes.kill(beat)
        assert hung.wait() == -signal.SIGKILL
    finally:
        hung.kill()
