"""What a checkpoint keeps of the order, so that a resume with another one is noticed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from mtgen.config import Config, validate
from mtgen.errors import CheckpointError
from mtgen.shards.input_files import write_whole
from mtgen.training.dataset import order_facts
from mtgen.training.state import check_compatible

MIXTURE = {"mixture": [{"path": "a", "weight": 1}, {"path": "b", "weight": 2}]}


def order(remote: bool = False, **data: Any) -> dict[str, Any]:
    config: Config = validate({"name": "n", "data": data or {"path": "a"}})
    return order_facts(config, SimpleNamespace(remote=remote))  # type: ignore[arg-type]


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


def judged(before: dict[str, Any], now: dict[str, Any]) -> Any:
    """A checkpoint of a run with the data settings `before`, as a run with `now` judges it."""
    found: Any = SimpleNamespace(folder="000100", state={"fingerprint": "f" * 64, "order": before})
    samples: Any = SimpleNamespace(remote=False, fingerprint="f" * 64, folder="a")
    return check_compatible(found, validate({"name": "n", "data": now}), samples)


def tokenizer(path: Path, *words: str) -> str:
    write_whole(
        path, Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, words[0])).to_str()
    )
    return str(path)


def test_a_run_goes_on_with_the_tokenizer_that_it_began_with_wherever_the_file_is(tmp_path: Path) -> None:
    one, moved = tokenizer(tmp_path / "a.json", "?", "cat"), tokenizer(tmp_path / "elsewhere" / "b.json", "?", "cat")
    judged(order(path="a", tokenizer=one), {"path": "a", "tokenizer": moved})


def test_a_run_does_not_go_on_with_other_tokens(tmp_path: Path) -> None:
    one, other = tokenizer(tmp_path / "a.json", "?", "cat"), tokenizer(tmp_path / "b.json", "?", "dog")
    for before, now in ((None, one), (one, other), (one, None)):
        with pytest.raises(
            CheckpointError, match=r"its captions read by other files \(data\.tokenizer=.* then, .* now\)"
        ):
            judged(order(path="a", tokenizer=before), {"path": "a", "tokenizer": now})


def test_a_checkpoint_from_before_there_were_tokenizers_goes_on_with_bytes(tmp_path: Path) -> None:
    before = {key: value for key, value in order(path="a").items() if key != "data.tokenizer"}
    judged(before, {"path": "a"})
    with pytest.raises(CheckpointError, match="by other files"):
        judged(before, {"path": "a", "tokenizer": tokenizer(tmp_path / "a.json", "?", "cat")})
