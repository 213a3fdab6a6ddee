"""The data plane of up to 1,024 nodes, simulated in one process: 100,000 shards, 10^9 samples, sizes alone, no bytes.

For each order of samples and each number of nodes with 8 workers:

- `fetched`: shards that a node fetches in an epoch, relative to its part (all shards / nodes), over sampled nodes;
- `held`: shards that a node's cache holds at the same time, downloads ahead of use included, at the most;
- `shards_in_batch`: different shards in a global batch;
- `same_shard`, `source_distance`: how often a worker's next sample comes from the shard of the one before; mean
  distance in the source between the two, relative to independent draws;
- `neighbor_steps`: mean number of steps between two samples that are neighbors in the source;
- `workers_started`, `held_at_start`: loaders' iterators that this process started, one per worker, against an
  index that counts, and shards per node that they asked for until their first batch;
- `batch_cpu_ms`, `order_mb`, `first_cpu_s`: CPU time of a worker for a global batch of sample numbers and what to
  download ahead; memory of its order; CPU time to its first sample numbers. Opening the index is not in them;
- `requests_per_node_...`: requests to a real HTTP server, divided by the number of nodes, by which 4 nodes of 8 workers
  open a small indexed data set, for the first time and again.

MosaicML Streaming needs an environment of its own, without which it is left out (`data_speed.py` has the command). Its
default algorithm, `py1e`, runs for the shards of one node, since all nodes together need 8 GB for each array.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import numbered_dataset
import numpy as np
import typer
from common import ROOT, JsonOption, machine, quick_option, report
from numpy.typing import NDArray

from mtgen.config import DataConfig
from mtgen.data.index_store import index_dataset
from mtgen.data.loader import _global_batches
from mtgen.data.mixture import card_texts
from mtgen.data.orders.lanes import LaneOrder, Lanes
from mtgen.data.orders.permutation import Order, SampleOrder
from mtgen.data.orders.windowed import WindowedOrder
from mtgen.data.validation import open_training

WORKERS_PER_NODE, ROWS = 8, 16
"""Workers of a node, and rows of a worker in the global batch."""

STARTED_NODES = 4
"""Nodes whose start is counted over HTTP."""

LANE_WINDOW, WINDOW = 2**18 // WORKERS_PER_NODE, 8
"""Windows: samples of a lane, and shards of the windowed order (both defaults)."""

CHUNK = 2**17
"""Positions of one call of an order."""

Numbers = dict[str, Any]

MOSAIC = """
import json, sys
import numpy as np
from streaming.base.shuffle.py1e import get_shuffle_py1e
from streaming.base.shuffle.py1s import divide_spans
shards, size, nodes, out = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
spans, parts = divide_spans([(k * size, (k + 1) * size) for k in range(shards)], shards * size, nodes)
own = max(shards // nodes, 1)
ids = get_shuffle_py1e(np.full(own, size), 1, 9176, 0, max(4_000_000 // nodes, 1 << 18))
np.save(out, ids.astype(np.int64))
print(json.dumps({"fetched": max(end - begin for begin, end in parts) / (shards / nodes)}))
"""

START = """
import json, sys, time, psutil
import numpy as np
import mtgen.data.loader
from mtgen.data.orders.lanes import LaneOrder, Lanes
process = psutil.Process()
before = process.memory_info().rss
shards, size, lanes, rows, window = map(int, sys.argv[1:])
begin = time.process_time()
order = LaneOrder(np.full(shards, size), Lanes(lanes, rows), window, 0)
order.sample(np.arange(lanes * rows))
first = time.process_time() - begin
for step in range(20):
    order.sample(np.arange(lanes * rows) + step * lanes * rows)
print(json.dumps({"first": first, "memory": (process.memory_info().rss - before) / 1e6}))
"""


@dataclass(frozen=True)
class Cluster:
    """A data set and the nodes that read it."""

    shards: int
    size: int
    nodes: int

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.shards * self.size

    @property
    def workers(self) -> int:
        """Number of workers."""
        return self.nodes * WORKERS_PER_NODE

    @property
    def lanes(self) -> Lanes:
        """A lane for each worker."""
        return Lanes(self.workers, ROWS)

    def sampled_nodes(self, most: int) -> list[int]:
        """Nodes of all parts of the cluster, the first and the last among them."""
        return sorted({round(k) for k in np.linspace(0, self.nodes - 1, min(most, self.nodes))})


class CountingIndex:
    """As much of an index as the loader's iterator uses; counts the shards that one node asks for."""

    remote = True

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked: set[int] = set()

    def prefetch(self, sample: NDArray[np.int64]) -> None:
        """Note the shards of the samples."""
        self.asked |= set((sample // self.size).tolist())


def worker_positions(lanes: Lanes, worker: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of a worker's rows, one after the other: those of its lane where lanes are not shared."""
    return lanes.position(np.full_like(places, worker), places)


def lane_epoch(cluster: Cluster, order: LaneOrder, node: int) -> tuple[int, int]:
    """Shards that a node fetches in an epoch, and the most that it holds; shards of two lanes count twice."""
    lanes, begins, ends = cluster.lanes, [], []
    ahead = order.reach // lanes.count  # places of a lane by which downloads are ahead
    for worker in range(node * WORKERS_PER_NODE, (node + 1) * WORKERS_PER_NODE):
        length = int(lanes.places(np.array([worker]), cluster.samples)[0])
        shard = np.concatenate(
            [
                order.sample(worker_positions(lanes, worker, np.arange(begin, min(begin + CHUNK, length))))
                // cluster.size
                for begin in range(0, length, CHUNK)
            ]
        )
        first, last = np.unique(shard, return_index=True)[1], np.unique(shard[::-1], return_index=True)[1]
        begins.append(np.maximum(first - ahead, 0))
        ends.append(length - last)
    time_of = np.concatenate([*begins, *ends])
    change = np.repeat([1, -1], len(time_of) // 2)[np.argsort(time_of, kind="stable")]
    return len(time_of) // 2, int(np.cumsum(change).max())


def windowed_part(cluster: Cluster, order: SampleOrder, node: int, windows: int) -> float:
    """The same ratio for a node in the first windows of the windowed order."""
    steps = max(windows * WINDOW * cluster.size // cluster.lanes.step, 1)
    rows = np.arange(node * WORKERS_PER_NODE * ROWS, (node + 1) * WORKERS_PER_NODE * ROWS)
    seen: set[int] = set()
    for step in range(steps):
        seen |= set((order.sample(rows + step * cluster.lanes.step) // cluster.size).tolist())
    return len(seen) / (steps * cluster.lanes.step / cluster.size / cluster.nodes)


def quality(
    cluster: Cluster, streams: list[NDArray[np.int64]], rows: int, batch: NDArray[np.int64], distinct: int = 1
) -> Numbers:
    """How well samples are shuffled.

    Args:
        streams: samples of some workers, one after the other; or of all, if they read the same shards.
        rows: samples of a stream in a step.
        batch: a global batch, or a part of it.
        distinct: parts of the global batch, each with shards of its own.
    """
    same = [np.diff(stream // cluster.size) == 0 for stream in streams]
    distance = [np.abs(np.diff(stream)) for stream in streams]
    apart = []
    for stream in streams:
        at = np.argsort(stream)
        apart.append(np.abs(np.diff(at))[np.diff(stream[at]) == 1] / rows)
    neighbors = np.concatenate(apart)
    return {
        "shards_in_batch": len(np.unique(batch // cluster.size)) * distinct,
        "neighbor_steps": float(neighbors.mean()) if len(neighbors) else None,
        "same_shard": float(np.concatenate(same).mean()),
        "source_distance": float(np.concatenate(distance).mean() / (cluster.samples / 3)),
    }


def started(cluster: Cluster, order: SampleOrder, workers: int) -> Numbers:
    """Start the loaders' iterators of the first workers, one index per node, and take a batch of each."""
    indexes = [CountingIndex(cluster.size) for _ in range(-(-workers // WORKERS_PER_NODE))]
    begin = time.process_time()
    for worker in range(workers):
        mine = slice(worker * ROWS, (worker + 1) * ROWS)
        index: Any = indexes[worker // WORKERS_PER_NODE]
        next(_global_batches(index, order, cluster.lanes.step, mine, 0))
    seconds = time.process_time() - begin
    return {
        "workers_started": workers,
        "held_at_start": max(len(index.asked) for index in indexes),
        "batch_cpu_ms": seconds / workers * 1e3,
    }


def of_order(
    cluster: Cluster, order: SampleOrder, streams: list[NDArray[np.int64]], rows: int, workers: int
) -> Numbers:
    """Quality and start of one order; for `streams` and `rows` see `quality`."""
    step = cluster.lanes.step
    batch = order.sample(np.arange(step) + 10 * step)
    return quality(cluster, streams, rows, batch) | started(cluster, order, min(workers, cluster.workers))


def of_lanes(cluster: Cluster, workers: int) -> Numbers:
    """The order in lanes, one for each worker."""
    order = LaneOrder(np.full(cluster.shards, cluster.size), cluster.lanes, LANE_WINDOW, 0)
    most = min(max(cluster.nodes // 32, 1), 4)  # a node of a small cluster has a large part
    counts, held = zip(*[lane_epoch(cluster, order, node) for node in cluster.sampled_nodes(most)], strict=True)
    places = np.arange(3 * LANE_WINDOW)
    streams = [
        order.sample(worker_positions(cluster.lanes, node * WORKERS_PER_NODE, places))
        for node in cluster.sampled_nodes(16)
    ]
    found = {"fetched": max(counts) / (cluster.shards / cluster.nodes), "held": max(held)}
    return found | of_order(cluster, order, streams, ROWS, workers)


def of_windows(cluster: Cluster, windows: int, workers: int) -> Numbers:
    """The order that was the default for remote shards before."""
    order = WindowedOrder(np.full(cluster.shards, cluster.size), WINDOW, 0)
    found = {"fetched": windowed_part(cluster, order, cluster.nodes // 2, windows), "held": 2 * WINDOW}
    stream = order.sample(np.arange(4 * WINDOW * cluster.size))
    return found | of_order(cluster, order, [stream], cluster.lanes.step, workers)


def of_global(cluster: Cluster, workers: int) -> Numbers:
    """A shuffle of all samples: what independent draws give."""
    order = Order(cluster.samples, 0)
    found = of_order(cluster, order, [order.sample(np.arange(100_000))], cluster.lanes.step, workers)
    found["neighbor_steps"] = cluster.samples / 3 / cluster.lanes.step
    return {key: value for key, value in found.items() if key != "held_at_start"}


def of_mosaic(cluster: Cluster, python: Path) -> Numbers:
    """MosaicML Streaming's default: one node's stream by its own code, as if other nodes' were like it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ids.npy"
        sizes = map(str, (cluster.shards, cluster.size, cluster.nodes))
        ended = subprocess.run([python, "-c", MOSAIC, *sizes, file], capture_output=True, text=True, check=False)
        if ended.returncode:
            raise typer.BadParameter(f"--peers: {ended.stderr.strip().splitlines()[-1]}")
        ids = np.load(file)
    first, last = (np.unique(part // cluster.size, return_index=True)[1] for part in (ids, ids[::-1]))
    times = np.concatenate([first, len(ids) - last])
    change = np.repeat([1, -1], len(first))[np.argsort(times, kind="stable")]
    own = np.random.default_rng(0).permutation(cluster.shards)[: -(-len(ids) // cluster.size)]  # a node has any shards
    source = own[ids // cluster.size] * cluster.size + ids % cluster.size
    middle, rows = source[len(source) // 4 :][: 2**21], WORKERS_PER_NODE * ROWS
    found: Numbers = json.loads(ended.stdout.splitlines()[-1])
    found["held"] = int(np.cumsum(change).max())
    return found | quality(cluster, [middle], rows, middle[:rows], distinct=cluster.nodes)


class CountingHandler(SimpleHTTPRequestHandler):
    """Serves files and counts requests."""

    requests = 0

    def send_head(self) -> Any:
        """Count a GET or HEAD."""
        type(self).requests += 1
        return super().send_head()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def requests_of_a_start(shards: int) -> Numbers:
    """Requests to a real HTTP server by which some nodes open its data set, as training does, for the first time and
    again: the first worker reads `dataset.json` for all, and every worker opens the training split."""
    with tempfile.TemporaryDirectory() as folder:
        numbered_dataset.write(Path(folder), 10 * shards, 10, numbered_dataset.image_and_class)
        index_dataset(folder)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(CountingHandler, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        data, found = DataConfig(path=f"http://127.0.0.1:{server.server_port}"), {}
        for name in ("first_start", "next_start"):
            CountingHandler.requests = 0
            cards = card_texts(data)
            for node in range(STARTED_NODES):
                os.environ["MTGEN_CACHE"] = f"{folder}/cache of node {node}"
                for _ in range(WORKERS_PER_NODE):
                    open_training(data, cards=cards)
            found[f"requests_per_node_{name}"] = CountingHandler.requests / STARTED_NODES
        server.shutdown()
        return found


def memory_and_first_batch(cluster: Cluster) -> Numbers:
    """Memory of a worker's order, MB, and CPU time to its first sample numbers, in a process of its own."""
    arguments = (cluster.shards, cluster.size, cluster.lanes.count, ROWS, LANE_WINDOW)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", START, *map(str, arguments)], capture_output=True, text=True, check=True, env=environment
    )
    found = json.loads(ended.stdout.splitlines()[-1])
    return {"order_mb": found["memory"], "first_cpu_s": found["first"]}


def main(
    quick: Annotated[bool, quick_option("16 nodes, 10,000 shards, 10^8 samples")] = False,
    json_file: JsonOption = None,
    nodes: Annotated[list[int] | None, typer.Option(help="numbers of nodes; default: 16, 64, 128, 1024")] = None,
    peers: Annotated[Path | None, typer.Option(help="virtual environment with mosaicml-streaming")] = None,
) -> None:
    """Count what each order of samples asks of a store, and how well it shuffles."""
    here, rows = machine(), []
    for count in nodes or ([16] if quick else [16, 64, 128, 1024]):
        cluster = Cluster(10_000 if quick else 100_000, 10_000, count)
        workers = 64 if quick else 1024 if count < 1024 else 128  # batches of 1,024 nodes take long
        found: dict[str, Numbers] = {
            "lanes": of_lanes(cluster, workers) | memory_and_first_batch(cluster),
            "windows of 8 shards": of_windows(cluster, 2 if quick else 20, min(workers, 64)),
            "all samples": of_global(cluster, min(workers, 64)),
        }
        if peers:
            found["MosaicML Streaming, py1e"] = of_mosaic(cluster, peers / "bin/python")
        rows += [{"name": f"{count} nodes: {name}", **numbers} for name, numbers in found.items()]
    for shards in (20, 40) if quick else (50, 200):
        rows.append({"name": f"start over HTTP, {shards} shards", **requests_of_a_start(shards)})
    report("Orders of samples at scale: sizes only, simulated in one process", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
