"""What a checkpoint stores about the order of the data, so that a resume with another order is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from mtgen.config import Config, validate
from mtgen.errors import CheckpointError
from mtgen.shards.input_files import write_atomic
from mtgen.training.dataset import VALIDATION_FACT, order_facts
from mtgen.training.state import check_compatible

MIXTURE = {"mixture": [{"path": "a", "weight": 1}, {"path": "b", "weight": 2}]}


class Samples(list[int]):
    """As much of a data set of no samples as an order depends on; `held_out` samples are held out."""

    num_bytes, fingerprint, folder = 0, "f" * 64, "a"

    def __init__(self, remote: bool = False, held_out: int = 0) -> None:
        self.remote = remote
        self.whole = held_out


def order(remote: bool = False, **data: Any) -> dict[str, Any]:
    config: Config = validate({"name": "n", "data": data or {"path": "a"}})
    return order_facts(config, Samples(remote))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"path": "a"}, {"path": "a", "order": "windowed"}),
        ({"path": "a", "order": "windowed"}, {"path": "a", "order": "windowed", "window": 3}),
        ({"path": "a", "order": "lanes"}, {"path": "a", "order": "lanes", "lanes": 4}),
        ({"path": "a", "order": "lanes"}, {"path": "a", "order": "lanes", "lane_window": 4}),
        (MIXTURE, {"mixture": [{"path": "a", "weight": 1}, {"path": "b", "weight": 3}]}),
    ],
)
def test_another_order_is_noticed(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert order(**one) != order(**other)


def test_settings_that_do_not_change_the_order_are_not_noticed() -> None:
    assert order(path="a") == order(path="a", order="global") == order(path="a", window=3)
    assert order(remote=True, path="a") == order(path="a", order="lanes")


def check(before: dict[str, Any], now: dict[str, Any], held_out: int = 0) -> Any:
    """Whether a run with the data settings `now` may resume from a checkpoint of one with the order `before`."""
    found: Any = SimpleNamespace(folder="000100", state={"fingerprint": "f" * 64, "order": before})
    samples: Any = Samples(held_out=held_out)
    return check_compatible(found, validate({"name": "n", "data": now}), samples)


def tokenizer(path: Path, *words: str) -> str:
    write_atomic(
        path, Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, words[0])).to_str()
    )
    return str(path)


def test_a_run_resumes_with_its_tokenizer_wherever_the_file_is(tmp_path: Path) -> None:
    one, moved = tokenizer(tmp_path / "a.json", "?", "cat"), tokenizer(tmp_path / "elsewhere" / "b.json", "?", "cat")
    check(order(path="a", tokenizer=one), {"path": "a", "tokenizer": moved})


def test_a_run_does_not_resume_with_other_tokens(tmp_path: Path) -> None:
    one, other = tokenizer(tmp_path / "a.json", "?", "cat"), tokenizer(tmp_path / "b.json", "?", "dog")
    for before, now in ((None, one), (one, other), (one, None)):
        with pytest.raises(
            CheckpointError, match=r"other files that encode captions or images \(data\.tokenizer=.* then, .* now\)"
        ):
            check(order(path="a", tokenizer=before), {"path": "a", "tokenizer": now})


def test_a_checkpoint_older_than_tokenizers_resumes_with_bytes(tmp_path: Path) -> None:
    before = {key: value for key, value in order(path="a").items() if key != "data.tokenizer"}
    check(before, {"path": "a"})
    with pytest.raises(CheckpointError, match="other files that encode captions or images"):
        check(before, {"path": "a", "tokenizer": tokenizer(tmp_path / "a.json", "?", "cat")})


def test_a_run_does_not_resume_on_samples_that_it_held_out_and_an_older_one_not_without_some_of_its_own() -> None:
    before = {key: value for key, value in order(path="a").items() if key != VALIDATION_FACT}
    check(before, {"path": "a"})
    with pytest.raises(CheckpointError, match=r"data\.val_split=None then, 1 training samples now"):
        check(before, {"path": "a"}, held_out=1)
