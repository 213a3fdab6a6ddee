"""Whatever is killed and when, the same command resumes, and the run ends as an undisturbed one. The stack is real."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.commands import EVERY, IMAGES, LOG, SEED, Command, Ended, checkpoints, furnish, look, trained

from mtgen.alarms import read_alarms
from mtgen.config import DataConfig
from mtgen.data.mixture import Samples
from mtgen.data.orders.permutation import Order
from mtgen.data.validation import open_training, open_validation
from mtgen.shards.make import make
from mtgen.training.sample_log import history, read_segments

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set, a configuration, and all runs of these tests."""
    return furnish(tmp_path_factory.mktemp("survival"))


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., Command]]:
    """Start commands; their processes are ended after the test."""
    started: list[Command] = []

    def begin(*words: str) -> Command:
        started.append(Command(place, *words))
        return started[-1]

    yield begin
    for command in started:
        if command.process.poll() is None:
            for process in [*command.family(), command.process]:
                process.kill()
            command.process.wait()


def test_a_run_uses_the_cpus_that_it_is_bound_to(place: Path, start: Callable[..., Command]) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        command = start("train", str(place / "run.yaml"), "workers=2", "name=bound")
    finally:
        os.sched_setaffinity(0, allowed)
    assert command.wait().status == 2
    assert command.errors == ["error: workers=2: there are 1 CPUs, and every worker needs one; possible: 0 to 1"], (
        command.said
    )


@pytest.fixture(scope="module")
def alone(place: Path) -> Ended:
    """The uninterrupted run in one process."""
    return trained(place, "alone", 0)


@pytest.fixture(scope="module")
def both(place: Path) -> Ended:
    """The uninterrupted run on two workers."""
    return trained(place, "both", 2)


@pytest.fixture(scope="module")
def half(place: Path, both: Ended) -> Path:
    """The run on two workers as it was at half its length."""
    folder = place / "runs" / "half"
    shutil.copytree(place / "runs" / "both", folder, ignore=shutil.ignore_patterns("ray", "tracking.*"))
    for late in checkpoints(place, "half"):
        if int(late.name) > IMAGES // 2:
            shutil.rmtree(late)
    return folder


def copied(source: Path, name: str) -> Path:
    return Path(shutil.copytree(source, source.parent / name))


def test_a_run_on_one_worker_of_ray_equals_the_run_in_one_process(place: Path, alone: Ended) -> None:
    one = trained(place, "one", 1)
    assert (
        one.facts["digest"] == alone.facts["digest"] and one.facts["digest_averaged"] == alone.facts["digest_averaged"]
    )
    assert one.losses == alone.losses


def test_an_uninterrupted_run_has_every_row_once_and_in_order(both: Ended) -> None:
    assert both.facts["position"] == IMAGES and both.facts["workers"] == 2
    assert [images for images, _ in both.losses] == list(range(LOG, IMAGES + 1, LOG))
    assert both.starts == [0]


def assert_as_if_nothing_had_happened(run: Ended, both: Ended) -> None:
    assert run.facts["digest"] == both.facts["digest"] and run.facts["digest_averaged"] == both.facts["digest_averaged"]
    assert run.facts["steps"] == both.facts["steps"] and run.facts["position"] == IMAGES


def test_a_worker_that_is_killed_is_replaced_and_every_position_counts_once(
    place: Path, both: Ended, start: Callable[..., Command]
) -> None:
    command = start("train", "run.yaml", "name=worker", "workers=2", "train.log_samples=true")
    command.until(lambda: checkpoints(place, "worker"))
    workers = command.workers()
    assert len(workers) == 2
    workers[1].kill()
    assert command.wait().status == 0, command.said
    run = look(place, "worker")
    assert_as_if_nothing_had_happened(run, both)
    assert run.losses == both.losses
    assert len(run.starts) == 2 and 0 < run.starts[1] < IMAGES, "the worker was killed too late to be missed"
    log = (place / "runs" / "worker" / "log.txt").read_text(encoding="utf-8")
    story = [
        "train run.yaml name=worker workers=2",
        "worker begins",
        "was lost: ",
        f"worker resumes from {run.starts[1]:,} images",
        "finished at",
    ]
    assert sorted(story, key=log.index) == story, log
    folder = place / "runs" / "worker"
    assert [part.begin for part in read_segments(folder)] == run.starts and history(folder) == list(range(IMAGES))


def test_the_same_command_resumes_after_the_driver_was_killed(
    place: Path, both: Ended, start: Callable[..., Command]
) -> None:
    words = ("train", "run.yaml", "name=driver", "workers=2")
    first = start(*words)
    lock = place / "runs" / "driver" / ".lock"
    first.until(lambda: lock.exists() and lock.read_text(encoding="utf-8"))

    second = start(
        *words
    ).wait()  # while the first one's cluster starts: both are done with that well before a step is trained
    assert second.status == 5
    assert len(second.errors) == 1 and f"process {first.process.pid} " in second.errors[0]
    first.until(lambda: checkpoints(place, "driver"))

    family = first.family()
    first.process.kill()
    first.wait()
    again = start(*words).wait()
    assert again.status == 0, again.said
    run = look(place, "driver")
    assert_as_if_nothing_had_happened(run, both)
    assert run.losses == both.losses
    assert len(run.starts) == 2 and 0 < run.starts[1] < IMAGES
    left = [process.cmdline() for process in psutil.wait_procs(family, timeout=60)[1]]
    assert left == [], "processes of the killed driver live on"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_saves_a_checkpoint_and_names_the_command_that_resumes(
    place: Path, both: Ended, start: Callable[..., Command], number: signal.Signals
) -> None:
    """A terminal sends such a signal at Ctrl-C; `timeout` and systemd send SIGTERM."""
    name = f"asked-{number.name}"
    words = ("train", "run.yaml", f"name={name}", "workers=2")
    first = start(*words)
    first.until(lambda: checkpoints(place, name))
    family = first.family()
    os.killpg(first.process.pid, number)
    assert first.wait().status == 0, first.said
    stopped = look(place, name)
    assert EVERY <= stopped.facts["position"] < IMAGES
    assert f"To resume: mtgen train run.yaml name={name} workers=2" in " ".join(first.said.split())
    assert "Traceback" not in first.said
    assert psutil.wait_procs(family, timeout=60)[1] == []

    again = start(*words).wait()
    assert again.status == 0, again.said
    run = look(place, name)
    assert_as_if_nothing_had_happened(run, both)
    assert run.starts == [0, stopped.facts["position"]], "it did not go on from where it was stopped"


def test_a_checkpoint_of_two_workers_resumes_with_one_ray_worker(
    half: Path, place: Path, start: Callable[..., Command]
) -> None:
    copied(half, "fewer")
    assert start("train", "run.yaml", "name=fewer", "workers=1", "zero_stage=1").wait().status == 0
    run = look(place, "fewer")
    assert run.facts["position"] == IMAGES and run.facts["workers"] == 1 and run.starts == [0, IMAGES // 2]


@pytest.mark.parametrize("change", ["zero_stage=1", "zero_stage=2", "precision=bf16"])
def test_a_checkpoint_resumes_in_another_form(
    half: Path, place: Path, start: Callable[..., Command], change: str
) -> None:
    name = change.replace("=", "-")
    copied(half, name)
    command = start("train", "run.yaml", f"name={name}", change).wait()
    assert command.status == 0, command.said
    run = look(place, name)
    key, _, value = change.partition("=")
    assert run.facts["position"] == IMAGES and str(run.facts[key]) == value and run.starts == [0, IMAGES // 2]


def test_a_finished_run_says_so_and_does_nothing(place: Path, alone: Ended, start: Callable[..., Command]) -> None:
    before = {path: path.stat().st_mtime_ns for path in checkpoints(place, "alone")}
    command = start("train", "run.yaml", "name=alone", "--require-checkpoint").wait()
    assert command.status == 0 and "finished before" in " ".join(command.said.split())
    assert {path: path.stat().st_mtime_ns for path in checkpoints(place, "alone")} == before
    assert look(place, "alone").rows == alone.rows


def test_resume_without_a_checkpoint_is_an_error(start: Callable[..., Command]) -> None:
    command = start("train", "run.yaml", "name=fresh", "--require-checkpoint").wait()
    assert command.status == 4
    assert len(command.errors) == 1 and "--require-checkpoint" in command.errors[0]


def test_a_damaged_newest_checkpoint_is_named_and_the_end_is_the_same(
    place: Path, alone: Ended, start: Callable[..., Command]
) -> None:
    copied(place / "runs" / "alone", "damaged")
    shutil.rmtree(checkpoints(place, "damaged").pop())
    spoiled = checkpoints(place, "damaged")[-1] / "ema.safetensors"
    spoiled.write_bytes(spoiled.read_bytes()[:-100])
    command = start("train", "run.yaml", "name=damaged").wait()
    assert command.status == 0, command.said
    assert command.said.count(str(spoiled)) == 1, command.said
    run = look(place, "damaged")
    assert_as_if_nothing_had_happened(run, alone)
    assert run.losses == alone.losses


def refused(command: Command, status: int) -> str:
    """The error line of a command that failed."""
    assert command.wait().status == status, command.said
    assert len(command.errors) == 1 and "Traceback" not in command.said, command.said
    return command.errors[0]


def test_a_changed_network_is_rejected_and_the_run_keeps_its_configuration(
    half: Path, start: Callable[..., Command]
) -> None:
    folder = copied(half, "wider")
    before = (folder / "config.yaml").read_text(encoding="utf-8")
    line = refused(start("train", "run.yaml", "name=wider", "generator.widths=[8,12]", "workers=2"), 4)
    assert "network was changed" in line
    assert (folder / "config.yaml").read_text(encoding="utf-8") == before


def test_other_data_is_rejected(half: Path, place: Path, start: Callable[..., Command]) -> None:
    copied(half, "elsewhere")
    make("shapes", place / "other", resolution=16, train=400, test=100, seed=1)
    assert "different data than data.path=" in refused(
        start("train", "run.yaml", "name=elsewhere", f"data.path={place / 'other'}"), 4
    )


def test_more_workers_than_cpus_are_rejected(start: Callable[..., Command]) -> None:
    line = refused(start("train", "run.yaml", "name=many", "workers=64", "batch_size=128"), 2)
    assert f"{os.cpu_count()} CPUs" in line


def spoil(folder: Path, index: Samples, sample: int) -> str:
    """Damage the middle of an image of `index`; returns its key."""
    shard, image = folder / index.shard(sample), index.read(sample, "image")
    content = bytearray(shard.read_bytes())
    middle = content.index(image) + len(image) // 2
    content[middle : middle + len(image) // 4] = bytes(len(image) // 4)
    shard.write_bytes(content)
    return index.key(sample)


def test_a_damaged_validation_image_affects_the_validation_metrics_and_not_the_run(
    place: Path, start: Callable[..., Command]
) -> None:
    folder = Path(shutil.copytree(place / "data", place / "spoiled-val"))
    key = spoil(folder, open_validation(DataConfig(path=str(folder))), 1)
    command = start(
        "train", "run.yaml", "name=untested", f"data.path={folder}", "workers=2", "evaluate.every=320"
    ).wait()
    assert command.status == 0, command.said
    assert (
        f"warning: no pictures and validation metrics at 320 images: {folder}/train-000000.tar: {key}: image: damaged"
        in command.said
    )
    run = look(place, "untested")
    assert run.starts == [0] and run.facts["images"] == IMAGES


def test_a_damaged_image_stops_the_run_after_a_checkpoint(place: Path, start: Callable[..., Command]) -> None:
    folder = Path(shutil.copytree(place / "data", place / "spoiled"))
    position = 21 * 16 + 5
    training = open_training(DataConfig(path=str(folder)))
    (sample,) = Order(len(training), SEED).sample(np.array([position]))
    key = spoil(folder, training, sample)

    command = start("train", "run.yaml", "name=spoiled", f"data.path={folder}", "workers=2")
    line = refused(command, 3)
    assert f"{folder}/train-000000.tar" in line and key in line
    run = look(place, "spoiled")
    assert run.facts["position"] == 21 * 16, "the steps before the damaged image are lost"
    assert run.starts == [0], "workers were started again, in vain"


def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(
    half: Path, place: Path, start: Callable[..., Command]
) -> None:
    copied(half, "diverging")
    command = start(
        "train",
        "run.yaml",
        "name=diverging",
        "generator.learning_rate=1e30",
        "train.nonfinite_limit=4",
        "checkpoint.every=100000",
    )
    line = refused(command, 5)
    assert "train.nonfinite_limit" in line and "learning_rate" in line
    assert look(place, "diverging").facts["position"] == IMAGES // 2
    assert "divergence" in {alarm.kind for alarm in read_alarms(place / "runs" / "diverging")}
