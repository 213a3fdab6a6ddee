"""Sound files -> log-mel spectrograms with one channel, one sample rate and one length; DALI decodes on the CPU."""

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
"""Frames per second. A window is 2.5 hops long: 25 ms, as is usual for speech."""

DYNAMIC_RANGE_DB = 80.0
"""Decibels below a full-scale sine at which everything counts as silence."""

SAMPLE_RATE_RANGE = (1_000, 400_000)
"""Sample rates that are accepted, Hz."""

MAX_SOUND_SAMPLES = 100_000_000
"""Longest sound that is decoded: FLAC packs hours of silence into a megabyte, which would fill the memory."""


class SoundReader:
    """A DALI pipeline that decodes up to `batch` whole WAV or FLAC files of any sample rate to one channel.

    It decides whether a sound is damaged, both in training and in `mtgen shards validate`.
    """

    def __init__(self, threads: int, batch: int) -> None:
        self.threads = threads
        self._pipelines = Pipelines(self._build, batch)

    @property
    def rebuilds(self) -> int:
        """How many times the pipeline failed on a damaged sound and was rebuilt."""
        return self._pipelines.rebuilds

    def read(
        self, sounds: Sequence[bytes | None], name: Callable[[int], str]
    ) -> dict[int, tuple[NDArray[np.float32], int]]:
        """Decode files as stored -> row: (samples `[T]` in [-1,1], samples per second), for the rows that have a sound.

        Args:
            name: returns the name of the sample in row `i`, for errors.

        Raises:
            DamagedBatch: holds every sound that is damaged or empty.
            DataError: the sounds decode one at a time, but not together.
        """
        files = {row: data for row, data in enumerate(sounds) if data is not None}
        if not files:
            return {}

        def check(row: int) -> DamagedSample | None:
            return self.check_one(files[row], name(row))

        def raise_damaged(problems: dict[int, str | None]) -> None:
            if damaged := {row: _damaged_sample(name(row), problem) for row, problem in problems.items() if problem}:
                raise DamagedBatch(damaged)

        raise_damaged({row: _length_problem(data) for row, data in files.items()})
        decoded = self._pipelines.run_batch(
            lambda pipeline: _decode(pipeline, list(files.values())), list(files), check, name
        )
        by_row = dict(zip(files, decoded, strict=True))
        raise_damaged({row: _content_problem(data, *by_row[row]) for row, data in files.items()})
        return by_row

    def check_one(self, data: bytes, name: str) -> DamagedSample | None:
        """Decode one sound alone and return what is wrong with it; the pipeline for batches is not used."""
        problem = self.problem(data)
        return _damaged_sample(name, problem) if problem else None

    def problem(self, data: bytes) -> str | None:
        """Decode one sound alone and return what is wrong with it, in a few words."""
        if problem := _length_problem(data):
            return problem
        try:
            return _content_problem(data, *self._pipelines.run_one(lambda pipeline: _decode(pipeline, [data])[0]))
        except RuntimeError as error:
            return f"not a readable WAV or FLAC ({dali_reason(error)})"

    def _build(self, batch: int) -> Pipeline:
        pipeline = Pipeline(batch, self.threads, None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
        with pipeline:
            encoded = fn.external_source(name="sound", dtype=DALIDataType.UINT8, ndim=1)
            pipeline.set_outputs(*fn.decoders.audio(encoded, downmix=True, dtype=DALIDataType.FLOAT))
        pipeline.build()
        return pipeline


def _decode(pipeline: Pipeline, files: list[bytes]) -> list[tuple[NDArray[np.float32], int]]:
    """Samples and sample rate of each file. The samples are views of DALI's memory, which the next run overwrites."""
    pipeline.feed_input("sound", [np.frombuffer(data, np.uint8) for data in files])
    decoded, rates = pipeline.run()
    return [(np.asarray(decoded.at(at)), int(rate)) for at, rate in enumerate(np.array(rates.as_tensor()).reshape(-1))]


def _length_problem(data: bytes) -> str | None:
    """Whether a sound is too long to be decoded, by its header: STREAMINFO of a FLAC (RFC 9639, section 8.2).

    A WAV stores its samples uncompressed, so the size of the file bounds their number.
    """
    length = int.from_bytes(data[18:26], "big") & (1 << 36) - 1 if data.startswith(b"fLaC") else 0
    return f"{length:,} samples long, the limit is {MAX_SOUND_SAMPLES:,}" if length > MAX_SOUND_SAMPLES else None


def _content_problem(data: bytes, values: NDArray[np.float32], rate: int) -> str | None:
    """What is wrong with a sound that DALI has decoded."""
    if missing := _missing_bytes(data):
        return f"truncated, {missing:,} bytes are missing at its end"
    if not len(values):
        return "has no samples"
    if not np.isfinite(values).all():
        return "has values that are not finite"
    if not SAMPLE_RATE_RANGE[0] <= rate <= SAMPLE_RATE_RANGE[1]:
        return f"has {rate:,.0f} samples per second; possible: {SAMPLE_RATE_RANGE[0]:,} to {SAMPLE_RATE_RANGE[1]:,}"
    return None


class SoundDecoder:
    """WAV or FLAC files -> spectrograms.

    A spectrogram is the power in triangular bands (Slaney's mel scale, 0 to rate/2) under Hann windows of 25 ms every
    10 ms, in decibels: 1 is a full-scale sine, -1 is 80 dB below it or quieter. Short sounds are padded with silence,
    long ones are cut.
    """

    def __init__(self, settings: SoundConfig, threads: int, batch: int) -> None:
        self.settings = settings
        self.threads = threads
        self.batch = batch
        self.reader = SoundReader(threads, batch)
        self._window = settings.rate * 5 // (2 * FRAMES_PER_SECOND)
        self._length = (settings.frames - 1) * (settings.rate // FRAMES_PER_SECOND) + self._window
        self._mel = self._build_mel()

    def decode(self, sounds: Sequence[bytes | None], name: Callable[[int], str]) -> Tensor:
        """Decode files as stored -> `[B,mels,frames]` float32 on the CPU, about -1 to 1; 0 where a sample has no sound.

        Args:
            name: returns the name of the sample in row `i`, for errors.

        Raises:
            DamagedBatch, DataError: see `SoundReader.read`.
        """
        out = np.zeros((len(sounds), self.settings.mels, self.settings.frames), np.float32)
        if decoded := self.reader.read(sounds, name):
            audio = np.zeros((len(decoded), self._length), np.float32)
            for row, (values, rate) in enumerate(decoded.values()):
                values = values[: int(self._length * rate / self.settings.rate) + 1]
                values = self._resample(values, rate)[: self._length]
                audio[row, : len(values)] = values
            self._mel.feed_input("audio", audio)
            decibels = np.array(self._mel.run()[0].as_tensor())
            out[list(decoded)] = decibels * np.float32(2 / DYNAMIC_RANGE_DB) + np.float32(1)
        return torch.from_numpy(out)

    def _build_mel(self) -> Pipeline:
        rate = self.settings.rate
        pipeline = Pipeline(
            self.batch, self.threads, None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False
        )
        with pipeline:
            audio = fn.external_source(name="audio", dtype=DALIDataType.FLOAT, ndim=1)
            # zero padding makes the bins narrower than the lowest band
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
            # the power of a full-scale sine: a Hann window's mean is 1/2, and half of the amplitude is at -f
            full_scale = (self._window / 4) ** 2
            decibels = fn.to_decibels(mel, multiplier=10.0, reference=full_scale, cutoff_db=-DYNAMIC_RANGE_DB)
            pipeline.set_outputs(decibels)
        pipeline.build()
        return pipeline

    def _resample(self, values: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        """Samples at `rate` -> samples at the settings' rate, by SciPy: DALI's resampling aliases high tones."""
        if rate == self.settings.rate:
            return values
        from scipy.signal import resample_poly  # takes a second to import, so only runs with sounds import it

        common = math.gcd(rate, self.settings.rate)
        out: NDArray[np.float32] = resample_poly(values, self.settings.rate // common, rate // common)
        return out


def _damaged_sample(name: str, problem: str) -> DamagedSample:
    return DamagedSample("sound", name, f"sound: {problem}; {VALIDATE_HINT}")


def _missing_bytes(data: bytes) -> int:
    """How many bytes of samples a WAV lacks that its header announces; DALI reads such a file as a shorter sound."""
    return next((max(offset + size - len(data), 0) for kind, offset, size in _chunks(data) if kind == b"data"), 0)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, offset and size of each chunk of a WAV, up to its samples (RIFF: Microsoft and IBM 1991)."""
    offset, kind = 12, b""
    while data[:4] == b"RIFF" and offset + 8 <= len(data) and kind != b"data":
        kind, size = struct.unpack_from("<4sI", data, offset)
        yield kind, offset + 8, size
        offset += 8 + size + size % 2


def sound_info(data: bytes) -> tuple[float, int, int]:
    """Read seconds, samples per second and channels of a WAV or FLAC file from its header.

    Raises:
        ValueError: the header is damaged, or the file has no samples.
    """
    rate = channels = samples = 0
    if data.startswith(b"fLaC"):
        # STREAMINFO: 20 bits sample rate, 3 channels - 1, 5 bit depth, 36 number of samples (RFC 9639, section 8.2)
        info = int.from_bytes(data[18:26], "big")
        samples, rate, channels = info & (1 << 36) - 1, info >> 44, (info >> 41 & 7) + 1
    bytes_per_sample = 0
    for kind, offset, size in _chunks(data):
        if kind == b"fmt " and len(data) >= offset + 16:
            channels, rate, _, bytes_per_sample = struct.unpack_from("<HIIH", data, offset + 2)
        if kind == b"data" and bytes_per_sample:
            samples = min(size, len(data) - offset) // bytes_per_sample
    if not samples or not rate:
        raise ValueError("a sound without samples")
    return samples / rate, rate, channels
