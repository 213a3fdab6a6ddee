"""`mtgen evaluate` on the real stack: with any number of workers, after a kill, of an exported model, on other data."""

import json
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from helpers.commands import Command, furnish, trained
from torch import Tensor, nn

from mtgen.errors import ConfigError
from mtgen.evaluation.collection import MetricReport
from mtgen.evaluation.run import EvaluationOptions, evaluate_run
from mtgen.launchers.evaluation_workers import evaluate_on_ray
from mtgen.shards.make import make

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")]
COMPARED = ["distribution/fd", "distribution/kd", "distribution/prdc", "distribution/memorisation"]
QUICK = [
    "generated/class_agreement",
    "generated/mask_agreement",
    "generated/diversity",
    "test/class_accuracy",
    "test/mask_miou",
]
CHOSEN = [word for name in QUICK for word in ("--metrics", name)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set and a run on it."""
    folder = furnish(tmp_path_factory.mktemp("evaluation"))
    trained(folder, "run", 0)
    return folder


class Edges(nn.Module):
    """A feature extractor: 12 numbers per image."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu().mean((2, 3))


def measured(place: Path, workers: int, samples: int) -> MetricReport:
    network = place / "edges.pt"
    if not network.is_file():
        torch.jit.script(Edges()).save(network)
    extractor = {
        "kind": "torchscript",
        "name": "edges",
        "side": 0,
        "path": network.name,
        "sha256": sha256(network.read_bytes()).hexdigest(),
    }
    assignments = tuple(f"evaluate.extractor.{key}={value}" for key, value in extractor.items())
    names = (*COMPARED, *QUICK, "test/reconstruction_psnr", "test/reconstruction_ssim", "test/reconstruction_features")
    options = EvaluationOptions("data", samples, 0, "cpu", names, None, assignments, workers)
    return evaluate_run(place / "runs" / "run", options, worker_pool=partial(evaluate_on_ray, cpus=workers))


def test_three_workers_give_the_metrics_of_one_wherever_they_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)  # data and extractor have relative paths
    one, three = (measured(place, workers, 950) for workers in (1, 3))
    assert len(one) == 17 and not one.skipped
    assert three == pytest.approx(one, rel=1e-6, abs=1e-6)


def test_a_killed_evaluation_resumes_and_gives_the_same_metrics(place: Path) -> None:
    run, words = place / "runs" / "run", [*CHOSEN, "-n", "60000", "--json"]

    def evaluate(to: str) -> Command:
        return Command(place, "evaluate", str(run), *words, str(place / to))

    def generating() -> bool:
        notes = [json.loads(path.read_text())["note"] for path in run.glob("cache/*/*.json")]
        return any(note and note["done"].get("generated", [0])[0] for note in notes)

    assert evaluate("whole.json").wait().status == 0
    killed = evaluate("killed.json")
    killed.until(generating)
    killed.process.kill()
    killed.wait()
    assert not (place / "killed.json").exists() and (run / "cache").is_dir()
    again = evaluate("again.json").wait()
    assert again.status == 0 and "resumed an interrupted evaluation" in again.said
    assert json.loads((place / "again.json").read_text()) == json.loads((place / "whole.json").read_text())
    assert not (run / "cache").exists()


def test_an_exported_model_is_evaluated_on_the_data_it_was_trained_on(place: Path) -> None:
    assert Command(place, "export", str(place / "runs" / "run"), "--out", str(place / "exported")).wait().status == 0
    before = sorted(path.name for path in (place / "exported").iterdir())
    found = {}
    for name in ("runs/run", "exported"):
        words = [
            "evaluate",
            str(place / name),
            *CHOSEN,
            "-n",
            "300",
            "--json",
            str(place / "found.json"),
        ]
        ended = Command(place, *words).wait()
        assert ended.status == 0, ended.said
        found[name] = json.loads((place / "found.json").read_text())
    assert found["exported"] == found["runs/run"]
    assert sorted(path.name for path in (place / "exported").iterdir()) == before


def test_data_of_other_classes_are_rejected_by_name(place: Path) -> None:
    make("digits", place / "digits", train=20, test=20)
    with pytest.raises(
        ConfigError, match=r"digits: number 0 of its classes is 'zero', where the run was trained on 'circle'"
    ):
        evaluate_run(place / "runs" / "run", EvaluationOptions(str(place / "digits"), 100, 0, "cpu", tuple(QUICK)))


def test_other_data_of_the_same_classes_are_evaluated_without_changing_the_runs_journal(place: Path) -> None:
    make("shapes", place / "more", resolution=16, train=200, test=100, seed=7)
    journal = place / "runs" / "run" / "metrics.jsonl"
    before = journal.read_bytes()
    report = evaluate_run(place / "runs" / "run", EvaluationOptions(str(place / "more"), 100, 0, "cpu", tuple(QUICK)))
    assert report["test/class_accuracy"] >= 0 and not report.skipped
    assert journal.read_bytes() == before
