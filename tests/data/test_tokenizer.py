"""A caption's numbers say its text."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors, trainers

from mtgen.data.tokenizer import BYTE_TOKENIZER, FileTokenizer, open_tokenizer
from mtgen.errors import DataError

CAPTIONS = ["a photo of a frog", "a photo of a cat", "das Bild eines Bären", "猫の写真"] * 3


def trained(special: tuple[str, ...] = (), captions: list[str] = CAPTIONS) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(captions, trainer)
    return made


TOKENIZER = trained()
TRAINED = FileTokenizer(TOKENIZER.to_str().encode())


def kept(found: np.ndarray) -> np.ndarray:
    """The numbers before the padding, of which nothing but padding follows."""
    ends = np.flatnonzero(found == 0)
    count = int(ends[0]) if len(ends) else len(found)
    assert (found[count:] == 0).all()
    return found[:count]


@given(text=st.text(st.characters(codec="utf-8"), max_size=40), length=st.integers(1, 60))
def test_bytes_are_the_longest_whole_beginning_that_fits(text: str, length: int) -> None:
    found = BYTE_TOKENIZER.encode(text.encode(), length)
    text = text.strip()
    beginning = (kept(found) - 1).astype(np.uint8).tobytes().decode()
    following = text[len(beginning) : len(beginning) + 1]
    assert found.shape == (length,) and found.dtype == np.int64
    assert text.startswith(beginning) and (not following or len((beginning + following).encode()) > length)


@given(text=st.text(st.characters(codec="utf-8"), max_size=40), length=st.integers(1, 60))
def test_trained_tokens_are_those_of_the_library_cut_at_a_token(text: str, length: int) -> None:
    found = TRAINED.encode(text.encode(), length)
    assert found.shape == (length,) and found.dtype == np.int64 and found.max() < TRAINED.vocabulary
    assert kept(found).tolist() == [number + 1 for number in TOKENIZER.encode(text.strip()).ids][:length]


@given(text=st.text(st.characters(codec="utf-8"), max_size=20))
def test_text_and_its_bytes_are_the_same_and_white_space_around_it_is_nothing(text: str) -> None:
    for tokenizer in (BYTE_TOKENIZER, TRAINED):
        expected = tokenizer.encode(text, 100).tolist()
        assert tokenizer.encode(text.encode(), 100).tolist() == tokenizer.encode(f" {text}\n", 100).tolist() == expected


@pytest.mark.parametrize("tokenizer", [BYTE_TOKENIZER, TRAINED], ids=["bytes", "trained"])
@pytest.mark.parametrize("data", [b"caf\xe9", b"ab\xff" + b"c" * 100, b"c" * 100 + b"\xff"])
def test_what_is_not_utf8_is_damage_also_beyond_the_cut(data: bytes, tokenizer: FileTokenizer) -> None:
    with pytest.raises(ValueError, match="not UTF-8 at byte"):
        tokenizer.encode(data, 10)


@pytest.mark.parametrize("tokenizer", [BYTE_TOKENIZER, TRAINED], ids=["bytes", "trained"])
def test_half_a_character_is_refused(tokenizer: FileTokenizer) -> None:
    with pytest.raises(ValueError, match="character 1 is none that UTF-8 can write"):
        tokenizer.encode("a\ud800", 10)


@pytest.mark.parametrize("tokenizer", [BYTE_TOKENIZER, TRAINED], ids=["bytes", "trained"])
def test_a_caption_that_has_to_be_whole_is_not_cut(tokenizer: FileTokenizer) -> None:
    count = len(kept(tokenizer.encode("a photo of a frog", 100)))
    assert np.array_equal(
        tokenizer.encode("a photo of a frog", count, whole=True), tokenizer.encode("a photo of a frog", count)
    )
    with pytest.raises(ValueError, match=f"is {count} tokens long, {count - 1} fit"):
        tokenizer.encode("a photo of a frog", count - 1, whole=True)


def test_trained_tokens_are_fewer_than_bytes() -> None:
    assert len(kept(TRAINED.encode("a photo of a frog", 100))) < len("a photo of a frog") / 2


def test_of_a_file_with_special_tokens_and_a_length_of_its_own_only_the_text_counts() -> None:
    made = trained(("<pad>", "<start>"))
    plain = [number + 1 for number in made.encode("a cat").ids]
    made.post_processor = processors.TemplateProcessing(single="<start> $A", special_tokens=[("<start>", 1)])
    made.enable_truncation(2)
    made.enable_padding(length=30)
    found = FileTokenizer(made.to_str().encode())
    assert found.encode("a cat", 8).tolist() == plain + [0] * (8 - len(plain))
    assert found.vocabulary == made.get_vocab_size() + 1


def test_digests_differ_with_the_file_alone() -> None:
    other = FileTokenizer(trained(captions=["something else"] * 4).to_str().encode())
    assert len({BYTE_TOKENIZER.digest, TRAINED.digest, other.digest}) == 3
    assert TRAINED.digest == FileTokenizer(TOKENIZER.to_str().encode()).digest


def test_no_file_is_bytes_and_a_file_is_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_str())
    monkeypatch.chdir(tmp_path)
    assert open_tokenizer(None).vocabulary == 257
    for path in (str(tmp_path / "tokenizer.json"), "tokenizer.json"):
        assert open_tokenizer(path).digest == TRAINED.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"\xff", "no tokenizer"),
        (b"", "no tokenizer"),
        (b"{}", "no tokenizer"),
        (b"[1]", "no tokenizer"),
    ],
)
def test_a_bad_file_is_named_with_the_remedy(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"t\.json: {message}.*mtgen shards tokenizer"):
        open_tokenizer(str(path))


def test_an_untrained_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(tokenizers.Tokenizer(models.BPE()).to_str())
    with pytest.raises(DataError, match=r"t\.json: a tokenizer that has no tokens"):
        open_tokenizer(str(tmp_path / "t.json"))
