"""A run over HTTP: its store goes away and it is killed, and it ends as if nothing had happened."""

import shutil
from pathlib import Path

import pytest
from helpers.commands import Command, checkpoints, furnish, look, trained
from helpers.server import serving

from mtgen.data.index_store import index_dataset
from mtgen.shards.make import make

pytestmark = pytest.mark.e2e

ORDER = ("data.order=windowed", "data.window=1")


def test_a_run_over_http_survives_an_outage_and_a_kill(tmp_path: Path) -> None:
    place = furnish(tmp_path)
    make("shapes", place / "data", overwrite=True, resolution=16, train=400, test=100, samples_per_shard=40)
    calm = trained(place, "calm", 0, *ORDER)
    index_dataset(place / "data")
    shutil.rmtree(place / "cache")
    with serving(place / "data") as server:
        words = (f"data.path={server.url}", *ORDER, "data.cache_gb=0.001", "data.patience=200")
        command = Command(place, "train", "run.yaml", "name=stormy", *words)
        command.until(lambda: server.requests["train-000000.tar"])
        server.faults["*"] = [("status!", 503)]
        command.until(lambda: "trying for up to 200 s (data.patience)" in command.said)
        server.faults.clear()
        command.until(lambda: checkpoints(place, "stormy"))
        command.process.kill()
        command.wait()
        assert Command(place, "train", "run.yaml", "name=stormy", *words).wait().status == 0
        asked = sum(count for name, count in server.requests.items() if "index/" in name)
        assert asked == 2 and not server.heads, "the shards' table and the samples of one split, once for this node"
    run = look(place, "stormy")
    assert run.facts["digest"] == calm.facts["digest"] and len(run.starts) == 2
