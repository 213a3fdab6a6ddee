"""What every test stands on: one thread a process, nothing reported to anybody, and the shared test data."""

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; tests run side by side
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import hypothesis
import pytest
import torch
import torch.distributed as dist
from helpers.prerequisites import fails_in_ci, preventable

hypothesis.settings.register_profile("mtgen", deadline=None)  # no test asserts a time
hypothesis.settings.load_profile("mtgen")
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("digits")` is the folder of those shards; the test is skipped where they are not there."""
    root = Path(os.environ.get("MTGEN_TEST_DATA") or Path(__file__).resolve().parents[1] / "../shared/data").resolve()

    def find(name: str) -> Path:
        if not (root / name / "dataset.json").is_file():
            missing = f"no shards in {root / name}; MTGEN_TEST_DATA names the folder that holds {name}/"
            pytest.skip(preventable(missing, "they belong there") if root.is_dir() else missing)
        return root / name

    return find


@pytest.fixture
def process_group() -> None:
    """A process group of this process alone. It stays open, because DeepSpeed keeps references to the first one."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The machine's Chromium, with a microphone that beeps; the test is skipped where there is none."""
    sync = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip(preventable("no Chromium here", "apt-get install chromium"))
    words = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=words, timeout=180_000)
        yield browser
        browser.close()


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test, or a whole file, was skipped."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return str(reason).removeprefix("Skipped: ")


def refuse_preventable_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and fails_in_ci(reason_of(report)):
        report.outcome = "failed"
        report.longrepr = f"skipped under CI: {reason_of(report)}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_preventable_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_preventable_skip(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which tests were skipped: one line per reason, with the files and how many tests of each."""
    files: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for report in terminalreporter.getreports("skipped"):
        files[reason_of(report)][report.nodeid.partition("::")[0]] += 1
    if files:
        terminalreporter.section("skipped tests and why")
    for reason, counts in sorted(files.items()):
        where = ", ".join(f"{file} ({count})" for file, count in sorted(counts.items()))
        terminalreporter.line(f"{sum(counts.values())} skipped: {reason}: {where}")
