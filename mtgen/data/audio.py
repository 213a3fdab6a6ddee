"""Sounds -> log-mel spectrograms: one channel, one rate, one length; DALI decodes them on the CPU."""

import math
import struct
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIDataType
from torch import Tensor

from mtgen.config import SoundConfig
from mtgen.data.pipeline import VALIDATE_HINT, DamagedBatch, Pipelines, dali_reason
from mtgen.errors import DamagedSample

FRAMES_PER_SECOND = 100
"""Frames a second; a window is 2.5 steps long, 25 ms, as is usual for speech."""

DYNAMIC_RANGE_DB = 80.0
"""Decibels below a sine of full scale at which everything counts as silent."""

SAMPLE_RATE_RANGE = (1_000, 400_000)
"""Samples a second that a sound may have."""

MAX_SOUND_SAMPLES = 100_000_000
"""Samples that a sound may have; FLAC packs hours of silence into a megabyte, which would fill the memory."""


def frames(settings: SoundConfig) -> int:
    """Frames of a spectrogram, 10 ms each."""
    return max(round(settings.seconds * FRAMES_PER_SECOND), 1)


class SoundReader:
    """A DALI pipeline for up to `batch` WAV or FLAC files of any rate, which are decoded whole; channels are averaged.

    It is what says whether a sound is damaged: to a training as to `mtgen shards validate`.
    """

    def __init__(self, threads: int, batch: int) -> None:
        self.threads = threads
        self._pipelines = Pipelines(self._build, batch)

    @property
    def rebuilds(self) -> int:
        """How often the pipeline failed on a damaged sound and was built again."""
        return self._pipelines.rebuilds

    def read(
        self, sounds: Sequence[bytes | None], name: Callable[[int], str]
    ) -> dict[int, tuple[NDArray[np.float32], int]]:
        """Files as stored -> row: samples `[T]` in [-1,1] and how many are a second, for the rows that have a sound.

        Args:
            name: says which sample row `i` is, for errors.

        Raises:
            DamagedBatch: holds every sound that is damaged or empty.
            DataError: the sounds decode alone and not together.
        """
        files = {row: data for row, data in enumerate(sounds) if data is not None}
        if not files:
            return {}

        def damage(row: int) -> DamagedSample | None:
            return self.check_one(files[row], name(row))

        if larger := {row: _damage(name(row), reason) for row, data in files.items() if (reason := _too_long(data))}:
            raise DamagedBatch(larger)
        read = self._pipelines.run_batch(
            lambda pipeline: _decoded(pipeline, list(files.values())), list(files), damage, name
        )
        found = dict(zip(files, read, strict=True))
        wrong = {
            row: _damage(name(row), reason) for row, data in files.items() if (reason := _wrong(data, *found[row]))
        }
        if wrong:
            raise DamagedBatch(wrong)
        return found

    def check_one(self, data: bytes, name: str) -> DamagedSample | None:
        """What is wrong with one sound, decoded by itself; the pipeline for batches is not touched."""
        reason = self.fault(data)
        return _damage(name, reason) if reason else None

    def fault(self, data: bytes) -> str | None:
        """The same in a few words."""
        if reason := _too_long(data):
            return reason
        try:
            return _wrong(data, *self._pipelines.run_one(lambda pipeline: _decoded(pipeline, [data])[0]))
        except RuntimeError as error:
            return f"not a readable WAV or FLAC ({dali_reason(error)})"

    def _build(self, batch: int) -> Pipeline:
        pipeline = Pipeline(batch, self.threads, None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
        with pipeline:
            encoded = fn.external_source(name="sound", dtype=DALIDataType.UINT8, ndim=1)
            pipeline.set_outputs(*fn.decoders.audio(encoded, downmix=True, dtype=DALIDataType.FLOAT))
        pipeline.build()
        return pipeline


def _decoded(pipeline: Pipeline, files: list[bytes]) -> list[tuple[NDArray[np.float32], int]]:
    """Samples and rate of each file; the samples are DALI's memory, which it uses again."""
    pipeline.feed_input("sound", [np.frombuffer(data, np.uint8) for data in files])
    decoded, rates = pipeline.run()
    return [(np.asarray(decoded.at(at)), int(rate)) for at, rate in enumerate(np.array(rates.as_tensor()).reshape(-1))]


def _too_long(data: bytes) -> str | None:
    """Why a sound may not be decoded: what a FLAC says of itself (STREAMINFO: RFC 9639, 8.2); a WAV is no longer than its file."""
    promised = int.from_bytes(data[18:26], "big") & (1 << 36) - 1 if data.startswith(b"fLaC") else 0
    return (
        f"{promised:,} samples long, more than the {MAX_SOUND_SAMPLES:,} that are decoded"
        if promised > MAX_SOUND_SAMPLES
        else None
    )


def _wrong(data: bytes, values: NDArray[np.float32], rate: int) -> str | None:
    """What is wrong with a sound though DALI reads it."""
    if missing := _missing(data):
        return f"cut short, {missing:,} bytes are missing at its end"
    if not len(values):
        return "has no samples in it"
    if not np.isfinite(values).all():
        return "holds values that are not finite"
    if not SAMPLE_RATE_RANGE[0] <= rate <= SAMPLE_RATE_RANGE[1]:
        return f"has {rate:,.0f} samples a second; possible: {SAMPLE_RATE_RANGE[0]:,} to {SAMPLE_RATE_RANGE[1]:,}"
    return None


class SoundDecoder:
    """WAV or FLAC files -> spectrograms.

    A spectrogram is the power in triangular bands (Slaney's mel scale, 0 to rate/2) under Hann windows of 25 ms every 10 ms, in decibels:
    -1 is 80 dB below a sine of full scale, or silent, and 1 is that sine. A short sound is filled up with silence, a long one cut.
    """

    def __init__(self, settings: SoundConfig, threads: int, batch: int) -> None:
        self.settings = settings
        self.threads = threads
        self.batch = batch
        self.reader = SoundReader(threads, batch)
        self._window = settings.rate * 5 // (2 * FRAMES_PER_SECOND)
        self._length = (frames(settings) - 1) * (settings.rate // FRAMES_PER_SECOND) + self._window
        self._mel = self._build_mel()

    def decode(self, sounds: Sequence[bytes | None], name: Callable[[int], str]) -> Tensor:
        """Files as stored -> `[B,mels,frames]` float32 on the CPU, about -1 to 1; 0 where a sample has no sound.

        Args:
            name: says which sample row `i` is, for errors.

        Raises:
            DamagedBatch, DataError: see `SoundReader.read`.
        """
        out = np.zeros((len(sounds), self.settings.mels, frames(self.settings)), np.float32)
        if found := self.reader.read(sounds, name):
            audio = np.zeros((len(found), self._length), np.float32)
            for at, (values, rate) in enumerate(found.values()):
                values = values[: int(self._length * rate / self.settings.rate) + 1]
                values = self._resampled(values, rate)[: self._length]
                audio[at, : len(values)] = values
            self._mel.feed_input("audio", audio)
            out[list(found)] = np.array(self._mel.run()[0].as_tensor()) * np.float32(2 / DYNAMIC_RANGE_DB) + np.float32(
                1
            )
        return torch.from_numpy(out)

    def _build_mel(self) -> Pipeline:
        rate = self.settings.rate
        pipeline = Pipeline(
            self.batch, self.threads, None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False
        )
        with pipeline:
            audio = fn.external_source(name="audio", dtype=DALIDataType.FLOAT, ndim=1)
            # zeros around the window bring its bins closer than the lowest band is wide
            bins = 1 << (self._window - 1).bit_length()
            power = fn.spectrogram(
                audio,
                nfft=bins,
                window_length=self._window,
                window_step=rate // FRAMES_PER_SECOND,
                center_windows=False,
                power=2,
            )
            mel = fn.mel_filter_bank(power, sample_rate=float(rate), nfilter=self.settings.mels, normalize=False)
            loudest = (
                self._window / 4
            ) ** 2  # the power of a sine of full scale: a Hann window's mean is 1/2, and half of it lies at -f
            pipeline.set_outputs(fn.to_decibels(mel, multiplier=10.0, reference=loudest, cutoff_db=-DYNAMIC_RANGE_DB))
        pipeline.build()
        return pipeline

    def _resampled(self, values: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        """At the settings' rate; by scipy: DALI's own resampling folds tones that are too high for it back into the audible ones."""
        if rate == self.settings.rate:
            return values
        from scipy.signal import resample_poly  # takes a second to import, which every run without sounds would pay

        common = math.gcd(rate, self.settings.rate)
        out: NDArray[np.float32] = resample_poly(values, self.settings.rate // common, rate // common)
        return out


def _damage(name: str, reason: str) -> DamagedSample:
    return DamagedSample("sound", name, f"sound: {reason}; {VALIDATE_HINT}")


def _missing(data: bytes) -> int:
    """Bytes of samples that a WAV's header promises and the file does not hold; DALI reads such a file as a shorter sound."""
    return next((max(at + size - len(data), 0) for kind, at, size in _chunks(data) if kind == b"data"), 0)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and size of each part of a WAV, up to its samples (RIFF: Microsoft and IBM 1991)."""
    at, kind = 12, b""
    while data[:4] == b"RIFF" and at + 8 <= len(data) and kind != b"data":
        kind, size = struct.unpack_from("<4sI", data, at)
        yield kind, at + 8, size
        at += 8 + size + size % 2


def sound_info(data: bytes) -> tuple[float, int, int]:
    """Seconds, samples a second and channels of a WAV or FLAC file, from its header; `ValueError` where that is damaged."""
    rate = channels = frames = 0
    if data.startswith(b"fLaC"):
        info = int.from_bytes(
            data[18:26], "big"
        )  # STREAMINFO: 20 bits rate, 3 channels - 1, 5 depth, 36 samples (RFC 9639, 8.2)
        frames, rate, channels = info & (1 << 36) - 1, info >> 44, (info >> 41 & 7) + 1
    block = 0
    for kind, at, size in _chunks(data):
        if kind == b"fmt " and len(data) >= at + 16:
            channels, rate, _, block = struct.unpack_from("<HIIH", data, at + 2)
        if kind == b"data" and block:
            frames = min(size, len(data) - at) // block
    if not frames or not rate:
        raise ValueError("a sound without samples")
    return frames / rate, rate, channels
