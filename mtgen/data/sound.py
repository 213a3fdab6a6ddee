"""Sounds -> log-mel spectrograms: one channel, one rate, one length; DALI decodes them on the CPU."""

import gc
import math
import struct
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIDataType
from scipy.signal import resample_poly
from torch import Tensor

from mtgen.config import Sound
from mtgen.data.decode import REMEDY, DamagedBatch, dali_reason
from mtgen.errors import DamagedSample, DataError

STEPS = 100
"""Frames a second; a window is 2.5 steps long, 25 ms, as is usual for speech."""

QUIETEST = 80.0
"""Decibels below a sine of full scale at which everything counts as silent."""

RATES = (1_000, 400_000)
"""Samples a second that a sound may have."""


def frames(settings: Sound) -> int:
    """Frames of a spectrogram, 10 ms each."""
    return max(round(settings.seconds * STEPS), 1)


class SoundDecoder:
    """A DALI pipeline for up to `batch` WAV or FLAC files of any rate; channels are averaged.

    A spectrogram is the power in triangular bands (Slaney's mel scale, 0 to rate/2) under Hann windows of 25 ms every 10 ms, in decibels:
    -1 is 80 dB below a sine of full scale, or silent, and 1 is that sine. A short sound is filled up with silence, a long one cut.

    Attributes:
        rebuilds: how often the pipeline failed on a damaged sound and was built again.
    """

    def __init__(self, settings: Sound, threads: int, batch: int) -> None:
        self.settings, self.threads, self.batch = settings, threads, batch
        self.rebuilds = 0
        self._window = settings.rate * 5 // (2 * STEPS)
        self._length = (frames(settings) - 1) * (settings.rate // STEPS) + self._window
        self._mel = self._build_mel()
        self._pipeline = self._build(batch)
        self._single: Pipeline | None = None

    def decode(self, sounds: Sequence[bytes | None], name: Callable[[int], str]) -> Tensor:
        """Files as stored -> `[B,mels,frames]` float32 on the CPU, about -1 to 1; 0 where a sample has no sound.

        Args:
            name: says which sample row `i` is, for errors.

        Raises:
            DamagedBatch: holds every sound that is damaged or empty.
            DataError: the sounds decode alone and not together.
        """
        rows, files = [row for row, data in enumerate(sounds) if data is not None], [data for data in sounds if data is not None]
        out = np.zeros((len(sounds), self.settings.mels, frames(self.settings)), np.float32)
        if not rows:
            return torch.from_numpy(out)
        try:
            out[rows], wrong = self._run(self._pipeline, files)
        except RuntimeError as error:
            self._pipeline = self._build(self.batch)  # DALI cannot go on with a pipeline that failed
            self.rebuilds += 1
            gc.collect()
            wrong = {at: reason for at, data in enumerate(files) if (reason := self._alone(data))}
            if not wrong:
                raise DataError(
                    f"{name(rows[0])} and the {len(rows) - 1} sounds after it: DALI fails on them together, not alone: {dali_reason(error)}"
                ) from None
        if wrong:
            raise DamagedBatch({rows[at]: _damage(name(rows[at]), reason) for at, reason in wrong.items()})
        return torch.from_numpy(out)

    def alone(self, data: bytes, name: str) -> DamagedSample | None:
        """What is wrong with one sound, decoded by itself; the pipeline for batches is not touched."""
        reason = self._alone(data)
        return _damage(name, reason) if reason else None

    def _alone(self, data: bytes) -> str | None:
        self._single = self._single or self._build(1)
        try:
            return self._run(self._single, [data])[1].get(0)
        except RuntimeError as error:
            self._single = None
            return f"not a readable WAV or FLAC ({dali_reason(error)})"

    def _build(self, batch: int) -> Pipeline:
        pipeline = Pipeline(batch, self.threads, None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
        with pipeline:
            encoded = fn.external_source(name="sound", dtype=DALIDataType.UINT8, ndim=1)
            pipeline.set_outputs(*fn.decoders.audio(encoded, downmix=True, dtype=DALIDataType.FLOAT))
        pipeline.build()
        return pipeline

    def _build_mel(self) -> Pipeline:
        rate = self.settings.rate
        pipeline = Pipeline(self.batch, self.threads, None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
        with pipeline:
            audio = fn.external_source(name="audio", dtype=DALIDataType.FLOAT, ndim=1)
            # zeros around the window bring its bins closer than the lowest band is wide
            bins = 1 << (self._window - 1).bit_length()
            power = fn.spectrogram(audio, nfft=bins, window_length=self._window, window_step=rate // STEPS, center_windows=False, power=2)
            mel = fn.mel_filter_bank(power, sample_rate=float(rate), nfilter=self.settings.mels, normalize=False)
            loudest = (self._window / 4) ** 2  # the power of a sine of full scale: a Hann window's mean is 1/2, and half of it lies at -f
            pipeline.set_outputs(fn.to_decibels(mel, multiplier=10.0, reference=loudest, cutoff_db=-QUIETEST))
        pipeline.build()
        return pipeline

    def _run(self, pipeline: Pipeline, files: list[bytes]) -> tuple[NDArray[np.float32], dict[int, str]]:
        """Spectrograms `[n,mels,frames]`, and what is wrong with some of the sounds though DALI reads them."""
        pipeline.feed_input("sound", [np.frombuffer(data, np.uint8) for data in files])
        decoded, rates = pipeline.run()
        audio, wrong = np.zeros((len(files), self._length), np.float32), {}
        for at, rate in enumerate(np.array(rates.as_tensor()).reshape(-1)):
            values = np.asarray(decoded.at(at))
            values = values[: int(self._length * float(rate) / self.settings.rate) + 1]
            if missing := _missing(files[at]):
                wrong[at] = f"cut short, {missing:,} bytes are missing at its end"
            elif not len(values):
                wrong[at] = "has no samples in it"
            elif not np.isfinite(values).all():
                wrong[at] = "holds values that are not finite"
            elif not RATES[0] <= rate <= RATES[1]:
                wrong[at] = f"has {rate:,.0f} samples a second; possible: {RATES[0]:,} to {RATES[1]:,}"
            else:
                values = self._resampled(values, int(rate))[: self._length]
                audio[at, : len(values)] = values
        self._mel.feed_input("audio", audio)
        return np.array(self._mel.run()[0].as_tensor()) * np.float32(2 / QUIETEST) + np.float32(1), wrong

    def _resampled(self, values: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        """At the settings' rate; by scipy: DALI's own resampling folds tones that are too high for it back into the audible ones."""
        if rate == self.settings.rate:
            return values
        common = math.gcd(rate, self.settings.rate)
        out: NDArray[np.float32] = resample_poly(values, self.settings.rate // common, rate // common)
        return out


def _damage(name: str, reason: str) -> DamagedSample:
    return DamagedSample("sound", name, f"sound: {reason}; {REMEDY}")


def _missing(data: bytes) -> int:
    """Bytes of samples that a WAV's header promises and the file does not hold; DALI reads such a file as a shorter sound."""
    at = 12
    while data[:4] == b"RIFF" and at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind == b"data":
            return max(at + 8 + size - len(data), 0)
        at += 8 + size + size % 2
    return 0
