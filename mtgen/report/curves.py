"""Numbers over images seen, thinned to a size that a page can hold, in groups as in MLflow."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from mtgen.report.titles import title_of

T = TypeVar("T")
Points = Sequence[tuple[int, float]]

MAX_CURVE_POINTS = 300
"""Maximal points of a curve."""
MAX_PAGE_POINTS = 100_000
"""Maximal points of all curves of a page."""
LEADING_GROUPS = ("val", "test", "generated", "evaluation", "loss")
"""Groups that come first and are expanded."""


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced, including the first and the last."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]


def charts(runs: Mapping[str, Mapping[str, Points]]) -> dict[str, Any]:
    """`{run: {number: points}}` -> groups of charts with one line per run: `{"labels", "groups", "thinned"}`."""
    names = dict.fromkeys(name for numbers in runs.values() for name in numbers)
    lines = sum(len(numbers) for numbers in runs.values())
    most = max(2, min(MAX_CURVE_POINTS, MAX_PAGE_POINTS // max(lines, 1)))
    groups: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        group, _, short = name.partition("/")
        chart = [_line(numbers.get(name, ()), most) for numbers in runs.values()]
        groups.setdefault(group, []).append({"name": title_of(short or group), "lines": chart})
    order = [*(group for group in LEADING_GROUPS if group in groups), *sorted(set(groups) - set(LEADING_GROUPS))]
    thinned = any(len(points) > most for numbers in runs.values() for points in numbers.values())
    shown = [{"name": group, "open": group in LEADING_GROUPS, "charts": groups[group]} for group in order]
    return {"labels": list(runs), "groups": shown, "thinned": most if thinned else 0}


def _line(points: Points, most: int) -> dict[str, list[float]]:
    kept = evenly(points, most)
    return {"x": [x for x, _ in kept], "y": [float(f"{y:.5g}") for _, y in kept]}
