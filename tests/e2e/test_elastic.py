"""Elastic runs on several nodes: a run of three workers continues with two after a loss, and later grows back."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers.commands import Command, furnish, look
from helpers.nodes import TOKEN, Nodes

from mtgen.tracking.journal import JournalRow, read_journal

pytestmark = pytest.mark.e2e

ENOUGH = 96  # images that each number of workers trains on before the next event
WORDS = (
    "train",
    "run.yaml",
    "name=elastic",
    "workers={min: 2, max: 3, every: 1}",
    "batch_size=24",
    "train.accumulation=2",
)


@pytest.fixture
def nodes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Nodes]:
    found = Nodes(furnish(tmp_path), getattr(request, "param", 1))
    try:
        yield found
    finally:
        found.end()


def journal(place: Path) -> list[JournalRow]:
    folder = place / "runs" / "elastic"
    return list(read_journal(folder)) if (folder / "metrics.jsonl").exists() else []


def workers_of(place: Path) -> list[int]:
    """Worker counts with which the run has started and resumed so far."""
    return [row.start["workers"] for row in journal(place) if row.start]


def trained(place: Path) -> int:
    """Images seen by the current workers since they started."""
    rows = journal(place)
    begin = next((row.images for row in reversed(rows) if row.start), 0)
    return rows[-1].images - begin if rows else 0


def test_a_run_continues_with_two_of_three_workers_and_grows_back(nodes: Nodes) -> None:
    place, lost = nodes.place, nodes.join()
    nodes.join()
    command = Command(
        place,
        *WORDS,
        f"address={nodes.address}",
        "train.images=1000000",
        "train.log_every=24",
        "checkpoint.every=240",
        RAY_AUTH_TOKEN=TOKEN,
    )
    try:
        command.until(lambda: workers_of(place) == [3] and trained(place) >= ENOUGH)
        for process in [*lost.family(), lost.process]:  # the whole node, as in a power failure
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        command.until(lambda: workers_of(place) == [3, 2] and trained(place) >= ENOUGH)
        before = journal(place)[-1].images
        nodes.join()
        command.until(lambda: workers_of(place) == [3, 2, 3] and trained(place) >= ENOUGH)
        os.killpg(command.process.pid, signal.SIGINT)
        assert command.wait().status == 0, command.said
    finally:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()
    run = look(place, "elastic")
    assert run.facts["workers"] == 3 and run.facts["position"] == run.facts["steps"] * 24
    assert [images for images, _ in run.losses] == sorted({images for images, _ in run.losses}), (
        "a row is missing its turn or there twice"
    )
    grown = [row.images for row in run.rows if row.start][-1]
    assert grown >= before, "the run grew from an older checkpoint, although there was time for a new one"
    assert grown in [images for images, _ in run.losses], "images were trained on again"


@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_a_single_worker_uses_the_cpus_of_one_of_two_nodes(nodes: Nodes) -> None:
    nodes.join()
    words = ("train", "run.yaml", "name=alone", "workers=1", f"address={nodes.address}", "train.images=160")
    command = Command(nodes.place, *words, RAY_AUTH_TOKEN=TOKEN)
    try:
        assert command.wait().status == 0, command.said
    finally:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()
    assert look(nodes.place, "alone").facts["position"] == 160
