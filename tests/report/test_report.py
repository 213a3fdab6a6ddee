"""The report shows the record of a run, and works in a real browser without a network."""

import json
import os
import re
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from mtgen.config import Config
from mtgen.errors import ConfigError, UserError
from mtgen.launchers.driver import run_lock
from mtgen.report import all_sections, refresh_report, write_comparison, write_report
from mtgen.report.blocks import Facts, Table
from mtgen.report.compare import metrics
from mtgen.report.curves import evenly
from mtgen.report.image_timeline import grid_files, select_positions
from mtgen.report.run_record import SILENCE_SECONDS, RunRecord, read_record
from mtgen.report.sections.cost import gather as cost
from mtgen.report.sections.summary import gather as summary
from mtgen.schema import DatasetCard
from mtgen.tracking.journal import Journal
from mtgen.visualization.layers import GridPanel, LayeredGrid, write_layered_grid

HOSTILE = "<script>document.title='hacked'</script><img src=x onerror=alert(1)> {{ 7*7 }} &amp;"
CARD = DatasetCard(name="set", classes=["cat", "dog"], mask_classes=["background", "cat"], splits={})
RNG = torch.Generator().manual_seed(0)


def start(name: str, **config: Any) -> dict[str, Any]:
    text = Config.model_validate({"name": "run", "runs": "runs", "data": {"path": "set"}, **config}).to_yaml()
    card = CARD.model_dump(mode="json")
    return {
        "id": name,
        "name": name,
        "config": text,
        "card": card,
        "tags": {"dataset.name": name, "mtgen.version": "1"},
    }


def made(folder: Path, name: str = "first", **config: Any) -> Path:
    """A run of 2,000 images that was stopped after 1,000 and resumed, with a grid after each half."""
    journal = Journal(folder)
    for begin in (0, 1000):
        journal.append(begin, start=start(name, **config))
        for images in range(begin + 100, begin + 1001, 100):
            gate = {
                f"balancing_canvas/{key}": 0.5 for key in ("norm_a", "norm_b", "weight_a", "weight_b", "cosine_a_b")
            }
            journal.row(images, {"loss/d": 1000 / images, "test/class_accuracy": images / 2000, **gate})
        image = torch.rand(6, 1, 8, 8, generator=RNG) * 2 - 1
        mask, boxes = (
            torch.ones(6, 8, 8, dtype=torch.int64),
            torch.tensor([[[0.25, 0.25, 0.75, 0.75, 1.0]]]).expand(6, 1, 5),
        )
        write_layered_grid(
            folder,
            begin + 1000,
            "grid",
            LayeredGrid("Samples", [GridPanel("generated", image, mask, boxes)], [name] * 6, ["right"] * 6),
            CARD,
        )
        journal.append(begin + 1000, status="KILLED" if begin == 0 else "FINISHED")
    journal.row(2000, {"evaluation/class_accuracy": 0.75, "gradient/generator_nonfinite_steps": 3})
    journal.close()
    return folder


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A run whose journal has these rows, with their times."""
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def text_of(record: RunRecord) -> str:
    return json.dumps(
        [(section.title, [vars(block) for block in section.blocks]) for section in all_sections(record)], default=str
    )


def test_a_record_tells_sessions_from_evaluations_after_their_end(tmp_path: Path) -> None:
    record = read_record(made(tmp_path / "run"))
    assert [(part.begin, part.end, part.status) for part in record.sessions] == [
        (0, 1000, "KILLED"),
        (1000, 2000, "FINISHED"),
    ]
    assert record.status == "finished" and record.images == 2000


def test_a_run_that_ended_without_a_status_is_interrupted_unless_its_lock_is_held(tmp_path: Path) -> None:
    with closing(Journal(tmp_path)) as journal:
        journal.append(0, start=start("run"))
    assert read_record(tmp_path).status == "interrupted"
    with run_lock(tmp_path):
        assert read_record(tmp_path).status == "training"
    assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text(), (
        "the test needs the id of a running process in the lock file"
    )
    assert read_record(tmp_path).status == "interrupted"


def test_a_run_on_another_host_trains_as_long_as_it_writes_rows_or_heartbeats(tmp_path: Path) -> None:
    ago = time.time() - 2 * SILENCE_SECONDS
    rows = [
        {"images": 0, "time": ago, "start": start("run")},
        {"images": 0, "time": time.time(), "values": {"evaluation/cas": 0.5}},
    ]
    (written(tmp_path, rows) / ".lock").write_text("process 1 on another")
    assert read_record(tmp_path).status == "interrupted", "an evaluation is no sign of training"
    (tmp_path / "pulse").mkdir()
    (tmp_path / "pulse" / "0.json").touch()
    assert read_record(tmp_path).status == "training"
    os.utime(tmp_path / "pulse" / "0.json", (ago, ago))
    assert read_record(tmp_path).status == "interrupted"
    written(tmp_path, [*rows, {"images": 9, "time": time.time(), "values": {"loss/d": 1.0}}])
    assert read_record(tmp_path).status == "training"


def test_an_evaluation_days_after_a_run_was_killed_is_not_part_of_its_training(tmp_path: Path) -> None:
    rows = [
        {"images": 0, "time": 1000.0, "start": start("run")},
        {"images": 100, "time": 1060.0, "values": {"loss/d": 1.0, "evaluation/class_accuracy": 0.5}},
        {"images": 60, "time": 90_000.0, "values": {"evaluation/class_accuracy": 0.5}},
        {"images": 60, "time": 95_000.0, "values": {}},
    ]
    record = read_record(written(tmp_path, rows))
    assert [(part.begin, part.end, part.seconds, part.status) for part in record.sessions] == [(0, 100, 60.0, "")]
    assert record.last("evaluation/class_accuracy") == 0.5 and record.seconds == 60.0


def test_slow_workers_are_named_with_their_nodes(tmp_path: Path) -> None:
    def row(images: int, worker: float) -> dict[str, Any]:
        numbers = {"workers/forward_ms_slowest": worker, "workers/forward_ms_max": 30, "workers/forward_ms_mean": 20}
        return {"images": images, "time": 1000.0 + images, "values": numbers}

    begin = {"images": 0, "time": 1000.0, "start": start("run") | {"workers": 2, "hosts": ["a", "b"]}}
    record = read_record(written(tmp_path, [begin, row(1, 1.0), row(2, 0.0), row(3, 1.0)]))
    (table,) = [block for block in cost(record, None).blocks if isinstance(block, Table)]
    assert table.rows == [["1", "b", "2 of 3", "1.50"], ["0", "a", "1 of 3", "1.50"]]


def test_faults_metrics_and_alarms_are_shown(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    row = {
        "images": 5,
        "kind": "collapse",
        "about": "generator",
        "what": "samples look alike",
        "help": "raise tasks.generation.gamma",
    }
    (folder / "alarms.jsonl").write_text(json.dumps(row) + "\n{torn")
    (folder / "stacks-20261201-021500.txt").write_text("warning: worker 3 made no step\nworker 0 ...")
    text = text_of(read_record(folder))
    assert "stacks-20261201-021500.txt: warning: worker 3 made no step" in text and "worker 0 ..." not in text
    assert "Resumed from a checkpoint 1 time" in text and "3 steps of the generator were skipped" in text
    assert (
        "collapse at 5 images: samples look alike. What usually helps: raise tasks.generation.gamma" in text
        and "0.75 at 2,000" in text
    )


def test_the_newest_value_of_a_metric_is_the_headline_and_an_older_one_says_how_old(tmp_path: Path) -> None:
    rows = [
        {"images": 0, "time": 0.0, "start": start("run")},
        {
            "images": 1000,
            "time": 1.0,
            "values": {"test/class_accuracy": 0.1, "evaluation/class_accuracy": 0.2, "evaluation/cas": 0.3},
        },
        {
            "images": 2000,
            "time": 2.0,
            "values": {"val/class_accuracy": 0.4, "val/mask_miou": 0.5, "evaluation/mask_miou": 0.6},
        },
    ]
    block = summary(read_record(written(tmp_path, rows)), None).blocks[0]
    assert isinstance(block, Facts)
    assert [(fact.label, fact.value, fact.note) for fact in block.items[2:]] == [
        ("class accuracy", "0.400", "val"),
        ("mask mIoU", "0.600", "evaluation"),
        ("CAS", "0.300", "evaluation, at 1,000 images"),
    ]


def test_pictures_are_thinned_until_they_fit_and_keep_their_ends(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    for images in range(100, 1000, 100):
        write_layered_grid(
            folder, images, "grid", LayeredGrid("Samples", [GridPanel("generated", torch.zeros(1, 1, 8, 8))]), CARD
        )
    found = grid_files(read_record(folder))
    assert len(select_positions([found], ["grid"])) == 11
    assert {100, 2000} <= select_positions([found], ["grid"], budget=3000) < set(found["grid"])


def test_grids_that_a_resume_discarded_are_not_shown(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    write_layered_grid(
        folder, 9000, "grid", LayeredGrid("Samples", [GridPanel("generated", torch.zeros(1, 1, 8, 8))]), CARD
    )
    assert list(grid_files(read_record(folder))["grid"]) == [1000, 2000]


@pytest.mark.parametrize(
    ("items", "most", "left"), [([1, 2, 3], 5, [1, 2, 3]), ([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([1, 2], 1, [2])]
)
def test_evenly_keeps_the_ends(items: list[int], most: int, left: list[int]) -> None:
    assert evenly(items, most) == left


def test_a_report_that_cannot_be_written_stops_no_training(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="report.html: not written"):
        refresh_report(tmp_path / "nowhere")


def test_wrong_requests_are_clear_errors(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    with pytest.raises(UserError, match="nowhere: not a run"):
        write_report(tmp_path / "nowhere")
    for rows in ([], [{"images": 5, "time": 0.0, "values": {"evaluation/cas": 0.5}}]):
        without = written(tmp_path / "without", rows)
        with pytest.raises(UserError, match=r"without: has no record of a training \(no `start` in metrics.jsonl\)"):
            write_report(without)
        with pytest.raises(UserError, match="without: has no record of a training"):
            write_comparison([folder, without], tmp_path / "page.html")
    with pytest.raises(ConfigError, match="the page is an HTML file"):
        write_report(folder, out=folder / "config.yaml")
    with pytest.raises(ConfigError, match="at least two runs"):
        write_comparison([folder], tmp_path / "page.html")


def test_a_comparison_shows_only_what_differs_and_marks_the_best(tmp_path: Path) -> None:
    one, two = made(tmp_path / "a", "one"), made(tmp_path / "b", "two", batch_size=32)
    with closing(Journal(two)) as journal:
        journal.row(2000, {"evaluation/class_accuracy": 0.8})
    page = write_comparison([one, two], tmp_path / "page.html").read_text()
    table = page.partition(">Configuration</h2>")[2]
    assert re.findall(r'<th scope="row">([^<]*)</th>', table) == ["batch_size"]
    assert re.findall(r'class="best">([^<]*)', page) == ["0.8"]


def test_the_best_value_is_marked_as_its_metric_declares(tmp_path: Path) -> None:
    folders = [made(tmp_path / "a"), made(tmp_path / "b")]
    numbers = {
        "evaluation/fd_small_cnn": (1.0, 2.0),
        "evaluation/class_accuracy": (0.5, 0.25),
        "evaluation/spread": (0.9, 1.3),
    }
    numbers |= {"evaluation/memorised_small_cnn": (0.01, 0.5), "test/class_accuracy": (1.0, 1.0)}
    for number, folder in enumerate(folders):
        with closing(Journal(folder)) as journal:
            journal.row(2000, {name: values[number] for name, values in numbers.items()})
    table = metrics([read_record(folder) for folder in folders], ["a", "b"])
    assert {table.rows[row][0]: column for row, column in table.best} == {
        "evaluation/class_accuracy": 1,
        "evaluation/fd_small_cnn": 1,
        "evaluation/memorised_small_cnn": 1,
    }


@pytest.mark.timeout(300)
def test_the_page_works_in_a_browser_by_mouse_and_keyboard(browser: Any, tmp_path: Path) -> None:
    path = write_report(made(tmp_path / "run", HOSTILE))
    page = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark").new_page()
    page.set_default_timeout(120_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    page.goto(path.as_uri())
    pixels = "() => document.querySelector('canvas').toDataURL()"
    page.wait_for_function("() => document.querySelector('canvas').width > 8")

    assert page.title() == HOSTILE and page.locator("h1").inner_text() == HOSTILE and page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark

    shown = page.locator(".bar output")
    assert shown.inner_text() == "2,000"
    page.locator(".bar input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    assert shown.inner_text() == "1,000"
    page.wait_for_function("() => document.querySelector('canvas').width > 8")
    for layer in ("masks", "boxes"):
        before = page.evaluate(pixels)
        page.locator(f"[data-layer={layer}]").focus()
        page.keyboard.press("Space")
        page.wait_for_function(
            f"before => document.querySelector('canvas').width > 8 && ({pixels})() !== before", arg=before
        )

    page.locator(".chart svg").first.focus()
    page.keyboard.press("Home")
    assert page.locator(".chart output").first.inner_text() == "0.05 at 100"
    page.locator(".tools input").check()
    assert page.locator(".chart svg").count() > 0 and page.locator(".heat rect").count() == 20
    assert said == []


@pytest.mark.timeout(300)
def test_layers_that_no_picture_has_cannot_be_switched(browser: Any, tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    for sheet in (folder / "samples" / "layers").glob("*.json"):
        about = json.loads(sheet.read_text())
        sheet.write_text(json.dumps(about | {"boxes": [None for _ in about["boxes"]]}))
    page = browser.new_page()
    page.goto(write_report(folder).as_uri())
    page.wait_for_function("() => document.querySelector('canvas').width > 8")
    assert page.locator("[data-layer=masks]").is_visible() and not page.locator("[data-layer=boxes]").is_visible()
