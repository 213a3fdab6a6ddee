"""Spectrograms equal those computed by NumPy and SciPy; a damaged sound does not affect others."""

import io
import wave
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from helpers.loading import load
from helpers.sounds import DAMAGED, GOOD, flac, float_wav, samples, wav

from mtgen.config import SoundConfig
from mtgen.data.audio import SoundDecoder, sound_info
from mtgen.data.index import open_index
from mtgen.data.orders.permutation import Order
from mtgen.data.pipeline import DamagedBatch
from mtgen.errors import DamagedSample

Write = Callable[..., Path]
Sample = Callable[..., dict[str, Any]]
SETTINGS: dict[str, Any] = {"rank": 0, "world": 1, "resolution": 8, "channels": "gray", "seed": 5}


def slaney(hertz: np.ndarray) -> np.ndarray:
    """Mel of a frequency: linear to 1 kHz, then 27 steps for each factor of 6.4 (Slaney 1998, Auditory Toolbox)."""
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1) / 1000) / np.log(6.4))


def reference(values: np.ndarray, rate: int = 16_000, mels: int = 64, seconds: float = 1.0) -> np.ndarray:
    """`[mels,frames]` of `[T]` in [-1,1] at `rate`."""
    step, size, count = rate // 100, rate // 40, round(seconds * 100)
    padded = np.zeros((count - 1) * step + size)
    padded[: len(values)] = values[: len(padded)]
    bins = 2 ** int(np.ceil(np.log2(size)))
    parts = np.lib.stride_tricks.sliding_window_view(padded, size)[::step]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)
    power = np.abs(np.fft.rfft(parts * window, bins)) ** 2
    hertz = np.linspace(0, rate / 2, 100_000)
    edges = np.interp(np.linspace(0, slaney(np.array(rate / 2)), mels + 2), slaney(hertz), hertz)
    at = np.arange(bins // 2 + 1) * rate / bins
    bands = np.stack([np.interp(at, edges[band : band + 3], [0, 1, 0]) for band in range(mels)])
    return np.maximum(10 * np.log10(np.maximum(bands @ power.T / (size / 4) ** 2, 1e-30)), -80) / 40 + 1


def spectrogram(data: bytes, **settings: Any) -> np.ndarray:
    return SoundDecoder(SoundConfig(**settings), 1, 1).decode([data], str)[0].numpy()


@pytest.mark.parametrize("settings", [{}, {"rate": 8_000, "mels": 40}, {"rate": 44_100, "mels": 128, "seconds": 0.3}])
def test_the_spectrogram_of_a_wav_is_that_of_numpy(settings: dict[str, Any]) -> None:
    rate = settings.get("rate", 16_000)
    values = samples(1.2, rate, 300, 1500, 3100, noise=0.01)
    found = spectrogram(wav(values, rate), **settings)
    assert found.dtype == np.float32 and found.shape == (
        settings.get("mels", 64),
        round(100 * settings.get("seconds", 1)),
    )
    np.testing.assert_allclose(found, reference(values / 32768, **settings), atol=2e-3)


def test_a_float_wav_equals_a_16_bit_wav_with_the_same_samples() -> None:
    values = samples(0.5, 16_000, 300, noise=0.1)
    np.testing.assert_array_equal(
        spectrogram(float_wav(values / np.float32(32768), 16_000)), spectrogram(wav(values, 16_000))
    )


def test_a_flac_equals_a_wav_with_the_same_samples() -> None:
    values = samples(0.7, 16_000, 440, noise=0.05)
    np.testing.assert_array_equal(spectrogram(flac(values, 16_000)), spectrogram(wav(values, 16_000)))


def test_a_stereo_sound_of_another_rate_is_averaged_and_resampled() -> None:
    left, right = samples(1.1, 44_100, 500, noise=0.02), samples(1.1, 44_100, 2500)
    mean = (left / 32768 + right / 32768) / 2
    expected = reference(scipy.signal.resample_poly(mean, 160, 441))
    found = spectrogram(wav(np.stack([left, right], 1), 44_100))
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize("hertz", [12_000, 15_000, 20_000])
def test_tones_above_half_the_rate_are_not_aliased(hertz: int) -> None:
    assert spectrogram(wav(samples(1.2, 44_100, hertz), 44_100))[:, 3:-3].max() < -0.2


def test_a_full_scale_sine_reaches_one_and_silence_is_minus_one() -> None:
    loud = spectrogram(wav(samples(1.1, 16_000, 1000, loud=1.0), 16_000))
    assert 0.9 < loud.max() < 1.05
    assert (spectrogram(wav(np.zeros(16_000, np.int16), 16_000)) == -1).all()


def test_a_short_sound_is_padded_with_silence() -> None:
    values = samples(0.5, 16_000, 700, noise=0.1)
    found = spectrogram(wav(values, 16_000))
    assert (found[:, 50:] == -1).all() and (found[:, :47] > -1).all()


def test_samples_after_the_last_window_are_ignored() -> None:
    values = samples(3, 16_000, 700)
    np.testing.assert_array_equal(spectrogram(wav(values, 16_000)), spectrogram(wav(values[:16_240], 16_000)))


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_sound_is_named_and_the_others_still_decode(kind: str) -> None:
    data, message = DAMAGED[kind]
    decoder = SoundDecoder(SoundConfig(), 1, 3)
    whole = decoder.decode([GOOD, None, GOOD], str)
    with pytest.raises(DamagedBatch) as error:
        decoder.decode([GOOD, None, data], lambda row: f"set/train-000000.tar sample {row}")
    assert list(error.value.found) == [2]
    damage = error.value.found[2]
    assert isinstance(damage, DamagedSample) and damage.kind == "sound"
    assert "sample 2" in str(damage) and f"sound: {message}" in str(damage) and "mtgen shards validate" in str(damage)
    assert str(decoder.reader.check_one(data, "x")) == str(damage).replace("set/train-000000.tar sample 2", "x")
    assert torch.equal(decoder.decode([GOOD, None, GOOD], str), whole)


def test_a_sample_without_a_sound_has_zeros_and_is_not_present(write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(i, wav=GOOD if i % 3 else None) for i in range(12)]]})
    with load(open_index(folder, "train"), batch_size=12, components=("sound",), **SETTINGS) as loader:
        batch = next(loader)
    assert batch.sound is not None and batch.sound.shape == (12, 64, 100) and batch.sound.dtype == torch.float32
    there = batch.present["sound"]
    assert int(there.sum()) == 8 and (batch.sound[~there] == 0).all()
    np.testing.assert_array_equal(batch.sound[there], np.stack([spectrogram(GOOD)] * 8))


def test_sounds_are_not_read_unless_they_are_among_the_components(write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(i, wav=b"x") for i in range(12)]]})
    with load(open_index(folder, "train"), batch_size=12, **SETTINGS) as loader:
        assert next(loader).sound is None


def test_a_sample_with_a_damaged_sound_is_replaced_by_one_with_the_same_components(
    write: Write, sample: Sample
) -> None:
    bad = {1: b"x", 6: wav(np.zeros(0, np.int16), 8_000)}
    folder = write({"train": [[sample(i, wav=bad.get(i, GOOD) if i % 3 else None) for i in range(12)]]})
    index = open_index(folder, "train")
    with load(index, batch_size=12, components=("sound",), on_damage="skip", **SETTINGS) as loader:
        batches = list(islice(loader, 3))
    for batch in batches:
        assert batch.sound is not None and int(batch.present["sound"].sum()) == 8
        np.testing.assert_array_equal(batch.sound[batch.present["sound"]], np.stack([spectrogram(GOOD)] * 8))
    assert {damage.kind for _, damage in loader.damaged} == {"sound"} and len({str(d) for _, d in loader.damaged}) == 1
    with (
        load(index, batch_size=12, components=("sound",), **SETTINGS) as loader,
        pytest.raises(DamagedSample, match="sound: "),
    ):
        next(loader)


def test_sounds_of_the_digits_are_those_of_their_shards(shared_data: Callable[[str], Path]) -> None:
    index = open_index(shared_data("digits"), "test")
    with load(
        index,
        batch_size=32,
        components=("class", "sound"),
        sound=SoundConfig(rate=8_000),
        **SETTINGS | {"resolution": 32},
    ) as loader:
        batch = next(loader)
    assert batch.sound is not None
    numbers = Order(len(index), 5).sample(batch.position.numpy())
    assert batch.present["sound"].any()
    for row, i in enumerate(numbers):
        expected = np.zeros((64, 100))
        if batch.present["sound"][row]:
            with wave.open(io.BytesIO(index.read(i, "sound"))) as file:
                expected = reference(np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768, rate=8_000)
        np.testing.assert_allclose(batch.sound[row], expected, atol=0.01)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_length_rate_and_channels_are_read_from_the_header(rate: int) -> None:
    values = samples(0.5, rate, 300)
    seconds = len(values) / rate
    assert (
        sound_info(wav(values, rate))
        == sound_info(float_wav(values / 32768, rate))
        == sound_info(flac(values, rate))
        == (seconds, rate, 1)
    )
    assert sound_info(wav(np.stack([values, values], 1), rate)) == (seconds, rate, 2)


@pytest.mark.parametrize(
    "data", [b"", b"x" * 60, GOOD[:30], GOOD[:44], wav(np.zeros(0, np.int16), 8_000), b"fLaC", b"RIFF" + bytes(60)]
)
def test_a_header_without_the_length_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="without samples"):
        sound_info(data)
