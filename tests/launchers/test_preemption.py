"""A node that is about to leave makes runs write a checkpoint."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from mtgen.config import Config
from mtgen.launchers.preemption import DrainWatch, give_notice
from mtgen.launchers.ray_cluster import ray_cluster
from mtgen.training.protocol import CHECKPOINT_FILE


def test_each_node_that_gives_notice_makes_the_run_save_once(tmp_path: Path) -> None:
    nodes, said = dict[str, int](), list[str]()
    watch, asks = DrainWatch(tmp_path, lambda: nodes, said.append), tmp_path / CHECKPOINT_FILE
    watch.check()
    assert not asks.exists() and said == []
    nodes["a"] = 1
    watch.check()
    assert asks.exists() and said == ["1 node of the cluster will leave: writing a checkpoint; this is no failure"]
    asks.unlink()  # the run has saved
    watch.check()
    assert not asks.exists()
    nodes |= {"b": 2, "c": 2}
    watch.check()
    assert asks.exists() and said[1].startswith("2 nodes of the cluster will leave")


@pytest.mark.e2e
def test_the_notice_of_a_node_reaches_a_driver_while_the_node_still_works(tmp_path: Path) -> None:
    config = Config.model_validate({"name": "run", "runs": str(tmp_path), "data": {"path": "data"}})
    with ray_cluster(config, 1):
        import ray

        from mtgen.launchers.ray_internals import draining_nodes

        @ray.remote(num_cpus=1)
        class Worker:
            def number(self) -> int:
                return 7

        worker: Any = Worker.remote()
        assert ray.get(worker.number.remote()) == 7 and draining_nodes() == {}
        address = ray.get_runtime_context().gcs_address
        assert give_notice(os.getpid(), address, 60, os.environ)
        asks, deadline = tmp_path / CHECKPOINT_FILE, time.monotonic() + 30
        with DrainWatch(tmp_path, draining_nodes, print):
            while not asks.exists():
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert ray.get(worker.number.remote()) == 7
