"""A run's grids over time, embedded in a page; thinned evenly until they fit."""

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mtgen.report.curves import evenly
from mtgen.report.run_record import RunRecord
from mtgen.visualization.layers import LAYERS_FOLDER

PAGE_IMAGE_BYTES = 4_000_000
"""Approximate size of all pictures on a page, bytes."""


GRID_ORDER = ("grid", "reading", "asked-", "reconstruction", "translation", "batch-")
"""Order of the kinds of grids on a page, by prefixes of their names."""


def in_page_order(names: Iterable[str]) -> list[str]:
    """Kinds of grids in the order of the page; unknown ones at the end."""

    def rank(name: str) -> int:
        return next((i for i, prefix in enumerate(GRID_ORDER) if name.startswith(prefix)), len(GRID_ORDER))

    return sorted(names, key=rank)


def grid_files(record: RunRecord) -> dict[str, dict[int, Path]]:
    """Kind of grid -> position -> JSON file; without those beyond the run's position, which a resume has discarded."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted((record.folder / LAYERS_FOLDER).glob("*.json")):
        position, _, name = path.stem.partition("-")
        if position.isdigit() and int(position) <= record.images:
            found.setdefault(name, {})[int(position)] = path
    return found


def select_positions(
    found: Sequence[dict[str, dict[int, Path]]], names: Sequence[str], budget: int = PAGE_IMAGE_BYTES
) -> set[int]:
    """The positions to show of the grids of several runs: as many as fit, evenly spaced, including first and last."""
    sizes: dict[int, int] = {}
    for run in found:
        for name in names:
            for position, path in run.get(name, {}).items():
                files = (_image(path), _mask(path), path)
                sizes[position] = sizes.get(position, 0) + sum(
                    4 * file.stat().st_size // 3 for file in files if file.is_file()
                )
    chosen = sorted(sizes)
    while len(chosen) > 1 and sum(sizes[position] for position in chosen) > budget:
        chosen = evenly(chosen, max(1, len(chosen) * 3 // 4))
    return set(chosen)


def track(label: str, paths: dict[int, Path], positions: set[int]) -> dict[str, Any]:
    """One run's grids of one kind at the given positions; those that cannot be read are left out."""
    frames = (_frame(position, path) for position, path in sorted(paths.items()) if position in positions)
    return {"label": label, "frames": [frame for frame in frames if frame is not None]}


def _frame(position: int, path: Path) -> dict[str, Any] | None:
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))
        images = _uri("image/webp", _image(path))
        masks = _uri("image/png", _mask(path)) if layers["masked"] else ""
    except (OSError, ValueError, KeyError):  # incomplete or damaged
        return None
    return {**layers, "at": position, "images": images, "masks": masks}


def _image(path: Path) -> Path:
    return path.with_suffix(".webp")


def _mask(path: Path) -> Path:
    return path.with_name(f"{path.stem}-mask.png")


def _uri(kind: str, path: Path) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
