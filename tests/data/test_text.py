"""A caption's numbers say its text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.data.text import tokens


@given(text=st.text(max_size=40), length=st.integers(1, 60))
def test_tokens_are_the_longest_whole_beginning_that_fits(text: str, length: int) -> None:
    found = tokens(text.encode(), length)
    ends = np.flatnonzero(found == 0)
    count = int(ends[0]) if len(ends) else length
    assert found.shape == (length,) and (found[count:] == 0).all()
    kept = (found[:count] - 1).astype(np.uint8).tobytes().decode()
    following = text[len(kept) : len(kept) + 1]
    assert text.startswith(kept) and (not following or len((kept + following).encode()) > length)


@pytest.mark.parametrize("data", [b"caf\xe9", b"ab\xff" + b"c" * 100, b"c" * 100 + b"\xff"])
def test_what_is_not_utf8_is_damage_also_beyond_the_cut(data: bytes) -> None:
    with pytest.raises(ValueError, match="not UTF-8 at byte"):
        tokens(data, 10)
