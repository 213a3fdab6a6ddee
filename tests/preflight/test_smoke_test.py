"""The smoke test itself: it passes on a complete system, and names what is missing on another."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mtgen.errors import ConfigError, UserError
from mtgen.preflight.smoke_test import (
    FAILED,
    LIBRARIES,
    PASSED,
    UNAVAILABLE,
    Checks,
    Trainings,
    Unavailable,
    chosen_device,
    smoke_test,
)

ROOT = Path(__file__).resolve().parents[2]
QUIET = Console(quiet=True)


def passing() -> str:
    return "seen"


def failing() -> str:
    raise UserError("the thing is broken; fix it with `repair`")


def crashing() -> str:
    raise RuntimeError("a library\nhas its own words")


def lacking() -> str:
    raise Unavailable("no such library; install it")


def test_a_check_has_its_detail() -> None:
    checks = Checks(QUIET)
    checks.check("one", passing)
    assert [(row.result, row.detail) for row in checks.rows] == [(PASSED, "seen")]


@pytest.mark.parametrize(
    ("work", "result", "detail"),
    [
        (failing, FAILED, "the thing is broken; fix it with `repair`"),
        (crashing, FAILED, "RuntimeError: a library has its own words"),
        (lacking, UNAVAILABLE, "no such library; install it"),
    ],
)
def test_an_error_in_a_check_is_a_row_and_the_next_check_runs(work: object, result: str, detail: str) -> None:
    checks = Checks(QUIET)
    checks.check("one", work)  # type: ignore[arg-type]
    checks.check("two", passing)
    assert [(row.result, row.detail) for row in checks.rows] == [(result, detail), (PASSED, "seen")]


@pytest.mark.parametrize("work", [failing, lacking])
def test_a_check_is_not_available_if_one_that_it_needs_did_not_pass(work: object) -> None:
    checks = Checks(QUIET)
    checks.check("one", work)  # type: ignore[arg-type]
    checks.check("two", passing, needs=("one",))
    assert checks.rows[1].result == UNAVAILABLE
    assert checks.rows[1].detail == f"needs one ({checks.rows[0].result})"


def test_rows_are_saved_after_each_check_and_none_starts_after_the_time() -> None:
    saved: list[int] = []
    checks = Checks(QUIET, save=lambda rows: saved.append(len(rows)))
    for _ in range(3):
        checks.check("one", passing)
    assert saved == [1, 2, 3]
    late = Checks(QUIET, minutes=-1.0)
    late.check("one", failing)
    assert (late.rows[0].result, late.rows[0].detail) == (UNAVAILABLE, "left out: -1 minutes are over (--minutes)")


def test_an_interrupted_test_shows_the_checks_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Trainings) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainings, "make_data", interrupt)
    saved: list[str] = []
    console = Console(record=True, width=120, file=io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        smoke_test("cpu", tmp_path, console, save=lambda rows: saved.append(rows[-1]["check"]))
    assert saved == ["system", *LIBRARIES]
    assert all(f" {name} " in console.export_text(clear=False) for name in saved)


def test_the_table_shows_brackets_in_messages_unchanged() -> None:
    checks = Checks(QUIET)
    checks.check("one", lambda: "shape [2, 3] [bold]")
    console = Console(record=True, width=120, quiet=False, file=open("/dev/null", "w"))
    console.print(checks.table())
    assert "shape [2, 3] [bold]" in console.export_text()


def test_a_folder_that_cannot_be_created_is_named_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out .*file/kept: cannot be created"):
        smoke_test("cpu", tmp_path / "file/kept", QUIET)


def test_an_unknown_device_is_named_with_what_is_possible() -> None:
    with pytest.raises(ConfigError, match="tpu.*possible: auto, cpu, cuda"):
        chosen_device("tpu")


def results(path: Path) -> dict[str, dict[str, str]]:
    return {row["check"]: row for row in json.loads(path.read_text())}


@pytest.mark.e2e
def test_the_script_tests_everything_on_this_system(tmp_path: Path) -> None:
    command = [str(ROOT / "launch/smoke_gpu.sh"), "--device", "cpu", "--json", str(tmp_path / "smoke.json")]
    patient = {**os.environ, "SMOKE_MINUTES": "9"}  # other tests run at the same time
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=580, env=patient)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = results(tmp_path / "smoke.json")
    not_passed = {name: row["detail"] for name, row in rows.items() if row["result"] != PASSED}
    pairs = {f"training on two GPUs, {precision}" for precision in ("bf16", "fp16")}
    assert set(not_passed) == {"training fp16, ZeRO-0", "resuming fp16, ZeRO-0", "no host sync in a step", *pairs}
    assert "bf16" in not_passed["training fp16, ZeRO-0"]
    assert "images/s" in rows["speed at 16 pixels, fp32"]["detail"]
    assert "what:  " in done.stdout and "smoke-doctor.json" in done.stdout
    assert (tmp_path / "smoke-doctor.json").is_file()
    assert all(
        "bit for bit" in row["detail"]
        for name, row in rows.items()
        if name.startswith("resuming") and row["result"] == PASSED
    )


@pytest.mark.e2e
def test_without_dali_and_ray_the_rest_is_tested(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['nvidia.dali'] = sys.modules['ray'] = None; from mtgen.cli import main; main()"
    command = [sys.executable, "-c", hide, "smoke", "--device", "cpu", "--json", str(tmp_path / "smoke.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = results(tmp_path / "smoke.json")
    assert rows["DALI"]["result"] == rows["ray"]["result"] == rows["decoding"]["result"] == UNAVAILABLE
    assert rows["training fp32, ZeRO-0"]["detail"] == "needs DALI (not available)"
    assert rows["data set"]["result"] == rows["mlflow"]["result"] == PASSED
