"""A worker that is stopped for good, as a hang is: found, named, replaced, and the run ends as if nothing had happened."""

import signal
from pathlib import Path

import pytest
from commands import Command, checkpoints, furnish, look, trained

pytestmark = pytest.mark.e2e


def test_a_stopped_worker_is_named_and_replaced(tmp_path: Path) -> None:
    place = furnish(tmp_path)
    undisturbed = trained(place, "undisturbed", 2)
    command = Command(place, "train", "run.yaml", "name=stopped", "workers=2", "train.hang_seconds=5")
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
    assert f"(process {hung.pid}) made no step for 5 s" in " ".join(command.said.split()), command.said
    run = look(place, "stopped")
    assert run.facts["digest"] == undisturbed.facts["digest"] and run.losses == undisturbed.losses
    assert len(run.starts) == 2 and run.starts[1] > 0
