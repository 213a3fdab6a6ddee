"""Token numbers represent the text of a caption."""

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
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


TOKENIZER = trained()
TRAINED = FileTokenizer(TOKENIZER.to_str().encode())


def kept(found: np.ndarray) -> np.ndarray:
    """The numbers before the padding; asserts that nothing but padding follows."""
    ends = np.flatnonzero(found == 0)
    count = int(ends[0]) if len(ends) else len(found)
    assert (found[count:] == 0).all()
    return found[:count]


@given(text=st.text(st.characters(codec="utf-8"), max_size=40), length=st.integers(1, 60))
def test_bytes_are_truncated_to_the_longest_prefix_of_whole_characters(text: str, length: int) -> None:
    found = BYTE_TOKENIZER.encode(text.encode(), length)
    text = text.strip()
    prefix = (kept(found) - 1).astype(np.uint8).tobytes().decode()
    following = text[len(prefix) : len(prefix) + 1]
    assert found.shape == (length,) and found.dtype == np.int64
    assert text.startswith(prefix) and (not following or len((prefix + following).encode()) > length)


@given(text=st.text(st.characters(codec="utf-8"), max_size=40), length=st.integers(1, 60))
def test_trained_tokens_are_those_of_the_library_truncated(text: str, length: int) -> None:
    found = TRAINED.encode(text.encode(), length)
    assert found.shape == (length,) and found.dtype == np.int64 and found.max() < TRAINED.vocabulary
    assert kept(found).tolist() == [number + 1 for number in TOKENIZER.encode(text.strip()).ids][:length]


@given(text=st.text(st.characters(codec="utf-8"), max_size=20))
def test_text_and_bytes_are_encoded_equally_and_surrounding_white_space_is_stripped(text: str) -> None:
    for tokenizer in (BYTE_TOKENIZER, TRAINED):
        expected = tokenizer.encode(text, 100).tolist()
        assert tokenizer.encode(text.encode(), 100).tolist() == tokenizer.encode(f" {text}\n", 100).tolist() == expected


@pytest.mark.parametrize("tokenizer", [BYTE_TOKENIZER, TRAINED], ids=["bytes", "trained"])
@pytest.mark.parametrize("data", [b"caf\xe9", b"ab\xff" + b"c" * 100, b"c" * 100 + b"\xff"])
def test_invalid_utf8_is_an_error_even_beyond_the_truncation(data: bytes, tokenizer: FileTokenizer) -> None:
    with pytest.raises(ValueError, match="not UTF-8 at byte"):
        tokenizer.encode(data, 10)


@pytest.mark.parametrize("tokenizer", [BYTE_TOKENIZER, TRAINED], ids=["bytes", "trained"])
def test_a_lone_surrogate_is_refused(tokenizer: FileTokenizer) -> None:
    with pytest.raises(ValueError, match="character 1 cannot be encoded in UTF-8"):
        tokenizer.encode("a\ud800", 10)


@pytest.mark.parametrize("tokenizer", [BYTE_TOKENIZER, TRAINED], ids=["bytes", "trained"])
def test_a_whole_caption_is_not_truncated(tokenizer: FileTokenizer) -> None:
    count = len(kept(tokenizer.encode("a photo of a frog", 100)))
    assert np.array_equal(
        tokenizer.encode("a photo of a frog", count, whole=True), tokenizer.encode("a photo of a frog", count)
    )
    with pytest.raises(ValueError, match=f"is {count} tokens long, the limit is {count - 1}"):
        tokenizer.encode("a photo of a frog", count - 1, whole=True)


def test_trained_tokens_are_fewer_than_bytes() -> None:
    assert len(kept(TRAINED.encode("a photo of a frog", 100))) < len("a photo of a frog") / 2


def test_special_tokens_truncation_and_padding_of_a_file_are_ignored() -> None:
    tokenizer = trained(("<pad>", "<start>"))
    plain = [number + 1 for number in tokenizer.encode("a cat").ids]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A", special_tokens=[("<start>", 1)])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=30)
    found = FileTokenizer(tokenizer.to_str().encode())
    assert found.encode("a cat", 8).tolist() == plain + [0] * (8 - len(plain))
    assert found.vocabulary == tokenizer.get_vocab_size() + 1


def test_digests_depend_on_the_file_alone() -> None:
    other = FileTokenizer(trained(captions=["something else"] * 4).to_str().encode())
    assert len({BYTE_TOKENIZER.digest, TRAINED.digest, other.digest}) == 3
    assert TRAINED.digest == FileTokenizer(TOKENIZER.to_str().encode()).digest


def test_without_a_file_the_tokens_are_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_str())
    monkeypatch.chdir(tmp_path)
    assert open_tokenizer(None).vocabulary == 257
    for path in (str(tmp_path / "tokenizer.json"), "tokenizer.json"):
        assert open_tokenizer(path).digest == TRAINED.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the file does not exist"),
        (b"\xff", "not a tokenizer"),
        (b"", "not a tokenizer"),
        (b"{}", "not a tokenizer"),
        (b"[1]", "not a tokenizer"),
    ],
)
def test_an_invalid_file_is_named_with_the_remedy(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"t\.json: {message}.*mtgen shards tokenizer"):
        open_tokenizer(str(path))


def test_an_untrained_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(tokenizers.Tokenizer(models.BPE()).to_str())
    with pytest.raises(DataError, match=r"t\.json: the tokenizer has no tokens"):
        open_tokenizer(str(tmp_path / "t.json"))
