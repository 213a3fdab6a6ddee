"""A run reads two stores, is killed, and changes its number of workers; it ends as if nothing had happened."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Command, checkpoints, furnish
from helpers.nodes import TOKEN, Nodes
from helpers.s3_server import S3, s3
from helpers.server import serving
from safetensors.numpy import load_file

from mtgen.data.index_store import index_dataset
from mtgen.shards.make import make
from mtgen.tracking.journal import read_journal
from mtgen.training.sample_log import history

pytestmark = pytest.mark.e2e
__all__ = ["s3"]

SHAPES = {"resolution": 16, "train": 400, "test": 100, "samples_per_shard": 40}
WORDS = (
    "batch_size=24",
    "train.images=720",
    "checkpoint.every=240",
    "train.log_samples=true",
    *("data.order=lanes", "data.lanes=6", "data.lane_window=16"),
)


def test_a_run_over_http_and_s3_survives_an_outage_a_kill_and_a_change_of_workers(tmp_path: Path, s3: S3) -> None:
    place = furnish(tmp_path)
    make("shapes", place / "data", overwrite=True, **SHAPES)
    assert Command(place, "train", "run.yaml", "name=calm", *WORDS).wait().status == 0
    index_dataset(place / "data")
    make("shapes", "s3://bucket/set", **SHAPES)
    shutil.rmtree(place / "cache")
    nodes = Nodes(place, 3)
    words = ("train", "run.yaml", "name=stormy", *WORDS, f"address={nodes.address}", "data.patience=200")
    try:
        with serving(place / "data") as server:
            command = Command(place, *words, "workers=2", f"data.path={server.url}", RAY_AUTH_TOKEN=TOKEN)
            command.until(lambda: any(name.endswith(".tar") for name in server.requests))
            server.faults["*"] = [("status!", 503)]
            command.until(lambda: "trying for up to 200 s (data.patience)" in command.said)
            server.faults.clear()
            command.until(lambda: checkpoints(place, "stormy"))
            command.process.kill()
            command.wait()
            asked = sum(count for name, count in server.requests.items() if "index/" in name)
            assert asked == 2 and not server.heads, "the shards' table and the samples of one split, once for this node"
        s3.requests.clear()
        command = Command(place, *words, "workers=3", "data.path=s3://bucket/set", RAY_AUTH_TOKEN=TOKEN).wait()
        assert command.status == 0, command.said
    finally:
        nodes.end()
    asked = sum(count for (_, name), count in s3.requests.items() if "index/" in name)
    assert asked == 2 and not [name for method, name in s3.requests if method == "HEAD"]
    starts = [(row.images, row.start["workers"]) for row in read_journal(place / "runs/stormy") if row.start]
    assert [workers for _, workers in starts] == [2, 3] and 0 < starts[1][0] < 720
    assert history(place / "runs/stormy") == history(place / "runs/calm") == list(range(720))
    ends = [checkpoints(place, name)[-1] for name in ("stormy", "calm")]
    assert ends[0].name == ends[1].name
    run, calm = (load_file(end / "ema.safetensors") for end in ends)
    assert run.keys() == calm.keys()
    for name, values in run.items():  # sums over parts of a batch round differently
        assert np.allclose(values, calm[name], atol=1e-4), name
