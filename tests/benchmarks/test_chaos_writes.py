"""A checkpoint that is interrupted at every file operation: the newest good one is always intact."""

import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("chaos_writes")


@pytest.mark.parametrize("way", ["killed before", "power cut", "no room", "byte flipped"])
def test_after_an_interruption_anywhere_a_good_checkpoint_is_loaded_and_the_next_is_written(
    chaos: Any, way: str, tmp_path: Path
) -> None:
    done = chaos.operations(chaos.plain, tmp_path / "counted")
    assert {"open", "write", "fsync", "rename", "unlink", "rmdir", "mkdir"} == set(done)
    for at, name in enumerate(done):
        ended = chaos.end(chaos.plain, tmp_path / str(at), at, way)
        assert ended.wrong == "" and ended.loaded in (200, chaos.NEXT), f"operation {at} ({name}): {ended}"


def test_a_byte_that_is_flipped_behind_the_writers_back_is_an_error_at_once(chaos: Any, tmp_path: Path) -> None:
    at = chaos.operations(chaos.plain, tmp_path / "counted").index("write")
    assert chaos.end(chaos.plain, tmp_path / "flipped", at, "byte flipped").how == "refused"
