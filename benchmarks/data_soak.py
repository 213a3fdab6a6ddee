"""An epoch over HTTP from a server that fails, through a cache that is too small, with one sample in a hundred damaged in ten ways.

Shows that every good sample comes exactly once, every damaged one is counted, and memory stays flat. The exit status says whether it did.
"""

import functools
import http.server
import os
import random
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numbered_dataset
import numpy as np
import psutil
import typer
from common import machine, report

from mtgen.data.index import open_index
from mtgen.data.loader import Loader
from mtgen.data.transform_spec import TransformSpec
from mtgen.storage.shard_cache import GB

A_SHARD, WINDOW, BATCH = 500, 8, 250
FAILING = 0.02


def members(sample: int) -> list[tuple[str, bytes]]:
    """A sample; every hundredth is damaged, in ten ways that take turns."""
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
        ],  # dimensions of a bomb
        [("png", image[: middle - 8] + bytes(8) + image[middle:]), ("cls", label)],  # pixels, found only by decoding
        [("png", image), ("mask.png", b"no mask"), ("cls", label)],
    ]
    return damaged[sample // 100 % 10]


class Failing(http.server.SimpleHTTPRequestHandler):
    """Serves files; some requests get a 500 or half an answer."""

    protocol_version = "HTTP/1.1"
    draw = random.Random(0)
    failed = 0

    def do_GET(self) -> None:
        if self.draw.random() >= FAILING:
            super().do_GET()
            return
        type(self).failed += 1
        if self.draw.random() < 0.5:
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("Content-Length", "100000000")
        self.end_headers()
        self.wfile.write(bytes(1000))
        self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def main(
    quick: Annotated[bool, typer.Option("--quick", help="40,000 samples instead of 200,000")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
) -> None:
    """Read one epoch and hold it against what was written."""
    here, samples = machine(), 40_000 if quick else 200_000
    with tempfile.TemporaryDirectory(prefix="mtgen-soak-") as temporary:
        folder = Path(temporary) / "data"
        numbered_dataset.write(folder, samples, A_SHARD, members)
        size = sum(path.stat().st_size for path in folder.glob("*.tar"))
        os.environ["MTGEN_CACHE"] = str(Path(temporary) / "cache")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Failing, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        limit = {"on_damage": "skip", "damage_limit": 0.02, "cache": size / 3 / GB}
        index = open_index(f"http://127.0.0.1:{server.server_port}", "train", **limit)
        order = index.order("auto", WINDOW, seed=0)
        seen: Counter[int] = Counter()
        memory, process = [], psutil.Process()
        replaced: set[int] = set()
        with Loader(
            index, TransformSpec(8, "rgb", on_damage="skip"), batch_size=BATCH, rank=0, world=1, order=order
        ) as loader:
            for step in range(-(-len(index) // BATCH)):
                batch = next(loader)
                at = batch.position.numpy()
                replaced |= {position for position, _ in loader.damaged}
                own = np.array([position < len(index) and position not in replaced for position in at])
                seen.update(numbered_dataset.numbers(batch.image[own]).tolist())
                wrong = batch.label.numpy() != numbered_dataset.numbers(batch.image) % numbered_dataset.CLASSES
                assert not wrong.any(), f"a sample has another one's label: {numbered_dataset.numbers(batch.image)[wrong]}"
                if step % 16 == 0:
                    memory.append(process.memory_info().rss / 1e6)
            # a damaged sample may also be drawn in the place of another, and is then met twice
            damaged = Counter({damage.where: damage.kind for _, damage in loader.damaged}.values())
        server.shutdown()
        good = {sample for sample in range(samples) if sample % 100}
        counted = Counter(problem.kind for problem in index.problems) + damaged
        kept = sum(entry.stat().st_size for entry in (Path(temporary) / "cache/shards").iterdir())
    row = {
        "name": "soak",
        "samples": samples,
        "good": len(good),
        "good_seen_exactly_once": sum(seen[sample] == 1 for sample in good),
        "damaged": samples - len(good),
        "damaged_left_out_by_the_index": samples - len(index),
        "damaged_replaced": sum(damaged.values()),
        "failed_requests": Failing.failed,
        "cache_share_of_data": kept / size,
        "memory_mb_after_a_quarter": memory[len(memory) // 4],
        "after_half": memory[len(memory) // 2],
        "at_the_end": memory[-1],
        "memory": memory,
        "kinds": [f"{kind}: {number}" for kind, number in sorted(counted.items())],
    }
    report("Soak", here, [row], json_file)
    print(f"counted: {dict(counted)}")
    whole = (
        row["good_seen_exactly_once"] == len(good)
        and row["damaged_left_out_by_the_index"] + row["damaged_replaced"] == row["damaged"]
    )
    if not whole or set(seen) - good:
        raise SystemExit("not every good sample came exactly once, or not every damaged one was counted")


if __name__ == "__main__":
    typer.run(main)
