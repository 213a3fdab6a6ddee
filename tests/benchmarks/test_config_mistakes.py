"""A hundred invalid configurations, generated from the real ones: each is refused with its key and a remedy."""

import pytest
from config_mistakes import Mistake, judge, mistakes

MADE = list(mistakes(each=4))


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Mistake, object]]:
    folder = tmp_path_factory.mktemp("mistakes")
    return [(mistake, judge(mistake, folder)) for mistake in MADE]


def test_there_are_a_hundred_and_more_of_all_kinds() -> None:
    assert len(MADE) > 100
    assert len({mistake.kind.partition(":")[0] for mistake in MADE}) == 8


def test_every_mistake_is_refused_and_named_with_a_remedy(verdicts: list) -> None:
    wrong = [
        (mistake.kind, mistake.names, v.message) for mistake, v in verdicts if not (v.refused and v.named and v.remedy)
    ]
    assert not wrong


def test_the_right_word_is_suggested_for_nineteen_of_twenty(verdicts: list) -> None:
    suggested = [v.suggested for _, v in verdicts if v.suggested is not None]
    assert len(suggested) > 60
    assert sum(suggested) >= 0.95 * len(suggested)
