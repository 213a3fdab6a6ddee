"""One epoch over HTTP from a failing server, with a cache that is too small, and one damaged sample in a hundred.

Every good sample must come exactly once, every damaged one (in ten different ways) must be counted, and memory must
stay flat. The exit status is 0 if so.
"""

import functools
import http.server
import os
import random
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numbered_dataset
import numpy as np
import psutil
import typer
from common import JsonOption, machine, quick_option, report

from mtgen.data.index import Index, open_index
from mtgen.data.loader import Loader
from mtgen.data.orders.lanes import Lanes
from mtgen.data.orders.policy import OrderPolicy
from mtgen.data.transform_spec import TransformSpec
from mtgen.storage.shard_cache import GB

SHARD_SIZE, LANE_WINDOW, BATCH = 500, 2000, 250
FAILURE_PROBABILITY = 0.02
"""Probability that the server fails a request."""


def members(sample: int) -> list[tuple[str, bytes]]:
    """Files of a sample; every hundredth sample is damaged, in one of ten ways by turns."""
    image, label = numbered_dataset.png(sample), str(sample % numbered_dataset.CLASSES).encode()
    if sample % 100:
        return [("png", image), ("cls", label)]
    middle = len(image) - 24
    damaged: list[list[tuple[str, bytes]]] = [
        [("png", image[: len(image) // 2]), ("cls", label)],  # cut short
        [("png", b""), ("cls", label)],
        [("png", b"not an image at all"), ("cls", label)],
        [("cls", label)],  # no image
        [("png", image), ("cls", b"seven")],
        [("png", image), ("cls", b"99")],
        [("png", image), ("jpg", image), ("cls", label)],  # two images
        [
            ("png", image[:16] + b"\x7f\xff\xff\xff\x7f\xff\xff\xff" + image[24:]),
            ("cls", label),
        ],  # dimensions of a decompression bomb
        [("png", image[: middle - 8] + bytes(8) + image[middle:]), ("cls", label)],  # pixels, found only by decoding
        [("png", image), ("mask.png", b"no mask"), ("cls", label)],
    ]
    return damaged[sample // 100 % 10]


class FailingHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files; answers some requests with status 500 or only half of the file."""

    protocol_version = "HTTP/1.1"
    rng = random.Random(0)
    failed = 0

    def do_GET(self) -> None:
        if self.rng.random() >= FAILURE_PROBABILITY:
            super().do_GET()
            return
        type(self).failed += 1
        if self.rng.random() < 0.5:
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("Content-Length", "100000000")
        self.end_headers()
        self.wfile.write(bytes(1000))
        self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


@dataclass
class Epoch:
    """Result of one epoch.

    Attributes:
        seen: sample -> how often it came.
        damaged: kind -> number of samples that the loader replaced.
        memory: of the process, MB, every 16 steps.
    """

    seen: Counter[int] = field(default_factory=Counter)
    damaged: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)


def read_epoch(index: Index) -> Epoch:
    """Load every sample of the index once, and check that each has its own label."""
    epoch, process, replaced = Epoch(), psutil.Process(), set[int]()
    spec, lanes = TransformSpec(8, "rgb", on_damage="skip"), Lanes(2, BATCH // 2)
    order = index.order(OrderPolicy("lanes", 0, LANE_WINDOW, lanes))
    with Loader(index, spec, batch_size=BATCH, rank=0, world=1, order=order) as loader:
        for step in range(-(-len(index) // BATCH)):
            batch = next(loader)
            numbers = numbered_dataset.numbers(batch.image)
            replaced |= {position for position, _ in loader.damaged}
            positions = batch.position.numpy()
            own = np.array([position < len(index) and position not in replaced for position in positions])
            epoch.seen.update(numbers[own].tolist())
            wrong = batch.label.numpy() != numbers % numbered_dataset.CLASSES
            assert not wrong.any(), f"samples with the label of another one: {numbers[wrong]}"
            if step % 16 == 0:
                epoch.memory.append(process.memory_info().rss / 1e6)
        # a damaged sample may also be chosen to replace another one, and is then met twice
        epoch.damaged = Counter({damage.where: damage.kind for _, damage in loader.damaged}.values())
    return epoch


def main(
    quick: Annotated[bool, quick_option("40,000 samples instead of 200,000")] = False, json_file: JsonOption = None
) -> None:
    """Load one epoch and compare it with what was written."""
    here, samples = machine(), 40_000 if quick else 200_000
    with tempfile.TemporaryDirectory(prefix="mtgen-soak-") as temporary:
        folder = Path(temporary) / "data"
        numbered_dataset.write(folder, samples, SHARD_SIZE, members)
        size = sum(path.stat().st_size for path in folder.glob("*.tar"))
        os.environ["MTGEN_CACHE"] = str(Path(temporary) / "cache")
        handler = functools.partial(FailingHandler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        limit = {"on_damage": "skip", "damage_limit": 0.02, "cache": size / 3 / GB}
        index = open_index(f"http://127.0.0.1:{server.server_port}", "train", **limit)
        epoch = read_epoch(index)
        server.shutdown()
        good = {sample for sample in range(samples) if sample % 100}
        counted = Counter(problem.kind for problem in index.problems) + epoch.damaged
        kept = sum(entry.stat().st_size for entry in (Path(temporary) / "cache/shards").iterdir())
    memory = epoch.memory
    row = {
        "name": "soak",
        "samples": samples,
        "good": len(good),
        "good_seen_exactly_once": sum(epoch.seen[sample] == 1 for sample in good),
        "damaged": samples - len(good),
        "damaged_left_out_by_the_index": samples - len(index),
        "damaged_replaced": sum(epoch.damaged.values()),
        "failed_requests": FailingHandler.failed,
        "cache_share_of_data": kept / size,
        "memory_mb_after_a_quarter": memory[len(memory) // 4],
        "after_half": memory[len(memory) // 2],
        "at_the_end": memory[-1],
        "memory": memory,
        "kinds": [f"{kind}: {number}" for kind, number in sorted(counted.items())],
    }
    report("Soak test", here, [row], json_file)
    print(f"damaged samples: {dict(counted)}")
    all_counted = row["damaged_left_out_by_the_index"] + row["damaged_replaced"] == row["damaged"]
    if row["good_seen_exactly_once"] != len(good) or not all_counted or set(epoch.seen) - good:
        raise SystemExit("failed: some good sample did not come exactly once, or some damaged one was not counted")


if __name__ == "__main__":
    typer.run(main)
