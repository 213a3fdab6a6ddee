"""The benchmarks run and report; no test asserts what they measure."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtgen.shards.make import make

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.e2e
def test_train_speed_compares_with_the_plain_loop_and_writes_json(tmp_path: Path) -> None:
    make("digits", tmp_path / "data", train=64, test=1)
    small = ["batch_size=8", "resolution=16", "generator.widths=[8, 8, 8]", "discriminator.widths=[8, 8, 8]"]
    options = [
        "--data",
        str(tmp_path / "data"),
        "--json",
        str(tmp_path / "speed.json"),
        "--rounds",
        "2",
        "--steps",
        "2",
    ]
    command = [sys.executable, "benchmarks/train_speed.py", *small, *options]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=580)
    report = json.loads((tmp_path / "speed.json").read_text())
    assert report["machine"]["cpus"] >= 1 and report["machine"]["versions"]["torch"]
    rows = report["rows"]
    found = [(row["workers"], row["batch"]) for row in rows if row["name"] == "mtgen"]
    assert found == [(1, 8), (2, 8), (2, 16)][: 1 if report["machine"]["cpus"] == 1 else 3]
    for row in rows:
        assert row["images_per_second"] > 0 and len(row["rounds"]) == 2
        if row["name"] == "mtgen":
            assert row["share_of_plain"] > 0 and 0 <= row["data_wait_share"] <= 1


@pytest.mark.e2e
def test_recipe_speed_trains_both_recipes_and_evaluates_their_samples(tmp_path: Path) -> None:
    make("digits", tmp_path / "data", style="gray", train=160, test=20)
    small = ["batch_size=8", "resolution=16", "generator.widths=[16, 16, 16]", "discriminator.widths=[16, 16, 16]"]
    options = [
        "--data",
        str(tmp_path / "data"),
        "--json",
        str(tmp_path / "recipe.json"),
        "--rounds",
        "1",
        "--minutes",
        "0.01",
    ]
    command = [sys.executable, "benchmarks/recipe_speed.py", *small, *options]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=580)
    rows = json.loads((tmp_path / "recipe.json").read_text())["rows"]
    assert [row["precision"] for row in rows] == ["fp32", "bf16"] * 4
    assert all(row["ms_per_step"] > 0 for row in rows) and rows[0]["times_r3gan_fp32"] == 1
    trained = [row for row in rows if "images" in row]
    assert len(trained) == 3 and all(row["images"] > 0 and 0 <= row["generated/cas"] <= 1 for row in trained)


@pytest.mark.e2e
def test_studies_compare_tasks_and_policies_and_keep_what_is_done(tmp_path: Path) -> None:
    make("digits", tmp_path / "data", style="gray", train=200, test=20)
    small = [
        "batch_size=8",
        "resolution=8",
        "generator.widths=[8, 8]",
        "discriminator.widths=[8, 8]",
        "tasks.translation.side=4",
    ]
    options = [
        "--data",
        str(tmp_path / "data"),
        "--work",
        str(tmp_path / "work"),
        "--images",
        "16",
        "--samples",
        "100",
        "--quick",
    ]

    def study(name: str, *more: str, at_once: int = 1) -> tuple[list[dict[str, Any]], dict[Path, int]]:
        command = [sys.executable, f"benchmarks/{name}.py", *small, *options, *more, "--json"]
        files = [tmp_path / f"study-{number}.json" for number in range(at_once)]
        running = [
            subprocess.Popen([*command, str(file)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
            for file in files
        ]
        assert [process.wait(timeout=580) for process in running] == [0] * at_once
        rows, *others = [json.loads(file.read_text())["rows"] for file in files]
        assert others == [rows] * (at_once - 1)
        return rows, {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.json")}

    rows, kept = study("multitask", "--cases", "all-labels")
    assert len(kept) == 5
    assert {"segmentation mIoU", "detection AP50", "generation CAS", "generation diversity"} <= {
        row["name"] for row in rows
    }
    for row in rows:
        assert row["each_gain"] == [b - a for a, b in zip(row["each_alone"], row["each_together"], strict=True)]
    assert study("multitask", "--cases", "all-labels") == (rows, kept)

    rows, more = study(
        "balancing_study", "--policies", "equal,balancer", at_once=2
    )  # they divide the runs between them
    assert more.items() >= kept.items() and len(more) == 8  # the tasks alone are stored already
    assert [row["name"] for row in rows] == ["each task alone", "equal", "balancer", "tuned fixed weights, best of 1"]
    alone = {
        key: row[key]
        for row in map(json.loads, (path.read_text() for path in kept))
        for key in row
        if row["variant"] != "together"
    }
    for row in rows[1:]:
        (found,) = row["rows"]
        gains = [
            found[key] / alone[key] - 1 for key in ("classification", "segmentation", "detection", "cas", "diversity")
        ]
        assert row["deltas"] == [pytest.approx(100 * sum(gains) / 5)]


@pytest.mark.e2e
@pytest.mark.skipif(
    subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True).returncode != 0,
    reason="no git checkout",
)
def test_a_benchmark_is_compared_between_two_checkouts(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "benchmarks/compare.py",
        "config_mistakes",
        "--base",
        "HEAD",
        "--rounds",
        "2",
        "--json",
        str(tmp_path / "c.json"),
    ]
    before = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=580)
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    assert rows and all(len(row["each_base"]) == len(row["each_here"]) == 2 for row in rows)
    assert all(row["ratio"] == row["here"] / row["base"] for row in rows if row["base"])
    assert (
        subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        == before
    )


@pytest.mark.e2e
def test_evaluate_speed_measures_one_metric_and_four_and_writes_json(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "benchmarks/evaluate_speed.py",
        "--images",
        "12",
        "--rounds",
        "1",
        "--json",
        str(tmp_path / "speed.json"),
    ]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=580,
        capture_output=True,
        text=True,
    )
    assert "skipped without --peers: torch-fidelity, torchmetrics" in ended.stdout
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [(row["name"], row["what"]) for row in rows] == [("mtgen", "FID"), ("mtgen", "four metrics")]
    assert all(row["cpu_seconds"] > 0 and row["fid"] > 0 for row in rows)
    assert rows[0]["fid"] == pytest.approx(rows[1]["fid"])
