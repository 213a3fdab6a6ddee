"""What every test stands on: one thread a process, nothing reported to anybody, and the shared test data."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; tests run side by side
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import hypothesis
import pytest
import torch

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
            pytest.skip(f"no shards in {root / name}; MTGEN_TEST_DATA names the folder that holds {name}/")
        return root / name

    return find


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The machine's Chromium, with a microphone that beeps; the test is skipped where there is none."""
    sync = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    words = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=words, timeout=180_000)
        yield browser
        browser.close()
