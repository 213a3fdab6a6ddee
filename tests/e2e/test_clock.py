"""The system's clock is set back while a run trains: nothing of the run depends on it.

A library of this test gives the run's processes the time of day: the kernel's plus an offset in a file. (libfaketime
also changes how long they sleep, which breaks Python's sleep.)
"""

import subprocess
from pathlib import Path

import pytest
from helpers.commands import Command, checkpoints, furnish, look, trained
from helpers.prerequisites import needs
from mlflow import MlflowClient

from mtgen.report.run_record import read_record
from mtgen.storage.tracking_store import store_uri
from mtgen.tracking.mlflow_sender import SenderState

CLOCK = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME && status == 0) {
        long seconds = 0;
        FILE *file = fopen(getenv("CLOCK_OFFSET"), "r");
        if (file != NULL) {
            if (fscanf(file, "%ld", &seconds) == 1) now->tv_sec += seconds;
            fclose(file);
        }
    }
    return status;
}
"""

pytestmark = [pytest.mark.e2e, needs("cc", "g++")]


def test_a_clock_that_is_set_back_by_a_day_changes_nothing(tmp_path: Path) -> None:
    place, clock = furnish(tmp_path), tmp_path / "clock"
    expected = trained(place, "alone", 0)
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "clock.so", tmp_path / "clock.c"], check=True)
    clock.write_text("0")
    command = Command(
        place,
        "train",
        "run.yaml",
        "name=back",
        "workers=0",
        LD_PRELOAD=str(tmp_path / "clock.so"),
        CLOCK_OFFSET=str(clock),
    )
    command.until(lambda: checkpoints(place, "back"))
    clock.write_text("-86400")
    assert command.wait().status == 0, command.said

    run = look(place, "back")
    times = [row.time for row in run.rows]
    assert min(b - a for a, b in zip(times, times[1:], strict=False)) < -80_000, (
        "the clock was set back too late to be noticed"
    )
    assert run.facts["digest"] == expected.facts["digest"] and run.losses == expected.losses
    assert [int(folder.name) for folder in checkpoints(place, "back")] == [
        int(folder.name) for folder in checkpoints(place, "alone")
    ]
    folder = place / "runs" / "back"
    points = MlflowClient(store_uri(folder.parent)).get_metric_history(SenderState.load(folder).run_id, "loss/d")
    assert sorted(point.step for point in points) == [images for images, _ in run.losses]
    assert 0 < read_record(folder).seconds < 3600
