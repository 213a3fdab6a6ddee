"""What a checkpoint keeps of the order, so that a resume with another one is noticed."""

from types import SimpleNamespace
from typing import Any

import pytest

from mtgen.config import Config, validate
from mtgen.training.loop import order_of

MIXTURE = {"mixture": [{"path": "a", "weight": 1}, {"path": "b", "weight": 2}]}


def order(remote: bool = False, **data: Any) -> dict[str, Any]:
    config: Config = validate({"name": "n", "data": data or {"path": "a"}})
    return order_of(config, SimpleNamespace(remote=remote))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"path": "a"}, {"path": "a", "order": "windowed"}),
        ({"path": "a", "order": "windowed"}, {"path": "a", "order": "windowed", "window": 3}),
        (MIXTURE, {"mixture": [{"path": "a", "weight": 1}, {"path": "b", "weight": 3}]}),
    ],
)
def test_another_order_is_told_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert order(**one) != order(**other)


def test_what_does_not_change_the_order_is_none() -> None:
    assert order(path="a") == order(path="a", order="global") == order(path="a", window=3)
    assert order(remote=True, path="a") == order(path="a", order="windowed")
