"""Sound files made for tests."""

import io
import struct
import wave

import numpy as np


def samples(seconds: float, rate: int, *hertz: float, loud: float = 0.5, noise: float = 0.0) -> np.ndarray:
    """`[T]` int16: the mean of several tones, plus noise."""
    t = np.arange(round(seconds * rate)) / rate
    tones = sum((np.sin(2 * np.pi * f * t) for f in hertz), np.zeros(len(t))) / max(len(hertz), 1)
    values = loud * tones + noise * np.random.default_rng(0).standard_normal(len(t))
    return np.round(np.clip(values, -1, 1) * 32767).astype(np.int16)


def wav(values: np.ndarray, rate: int) -> bytes:
    """A WAV file of `[T]` or `[T,channels]` int16."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1 if values.ndim == 1 else values.shape[1], 2, rate, 0, "NONE", ""))
        out.writeframes(values.astype("<i2").tobytes())
    return file.getvalue()


def float_wav(values: np.ndarray, rate: int) -> bytes:
    """A WAV file of `[T]` 32-bit floats (format 3)."""
    data = values.astype("<f4").tobytes()
    head = b"fmt " + struct.pack("<IHHIIHH", 16, 3, 1, rate, 4 * rate, 4, 32) + b"data" + struct.pack("<I", len(data))
    return b"RIFF" + struct.pack("<I", 4 + len(head) + len(data)) + b"WAVE" + head + data


def _crc(data: bytes, polynomial: int, bits: int) -> bytes:
    value = 0
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
    return value.to_bytes(bits // 8)


def flac(values: np.ndarray, rate: int, block: int = 4096, announced: int | None = None) -> bytes:
    """A FLAC file of `[T]` int16, with verbatim subframes. Source: RFC 9639, sections 8.2, 9 and 9.2.2.

    Args:
        announced: number of samples in the header; default: the true one.
    """
    info = (
        (block << 16 | block).to_bytes(4)
        + bytes(6)
        + (rate << 44 | 15 << 36 | (announced or len(values))).to_bytes(8)
        + bytes(16)
    )
    out = b"fLaC" + b"\x80" + len(info).to_bytes(3) + info
    for number, begin in enumerate(range(0, len(values), block)):
        part = values[begin : begin + block]
        header = b"\xff\xf8\x70\x08" + bytes([number]) + (len(part) - 1).to_bytes(2)
        frame = header + _crc(header, 0x107, 8) + b"\x02" + part.astype(">i2").tobytes()
        out += frame + _crc(frame, 0x18005, 16)
    return out


GOOD = wav(samples(0.3, 8_000, 600, noise=0.1), 8_000)
DAMAGED = {
    "no bytes": (b"", "not a readable WAV or FLAC"),
    "no chunks": (b"RIFF" + bytes(60), "not a readable WAV or FLAC"),
    "no samples": (wav(np.zeros(0, np.int16), 8_000), "has no samples"),
    "a header alone": (GOOD[:44], "truncated, 4,800 bytes"),
    "a truncated WAV": (GOOD[:-1000], "truncated, 1,000 bytes"),
    "a truncated FLAC": (flac(samples(1.0, 16_000, noise=0.1), 16_000)[:-9_000], ""),
    "infinite values": (float_wav(np.array([0, np.inf, np.nan, 1]), 16_000), "has values that are not finite"),
    "not a number after the first second": (
        float_wav(np.append(np.zeros(20_000), np.nan), 16_000),
        "has values that are not finite",
    ),
    "a FLAC of days": (
        flac(samples(0.1, 16_000), 16_000, announced=5_000_000_000),
        "5,000,000,000 samples long, the limit is 100,000,000",
    ),
}
"""Damaged files, and the message about each, both from a loader and from `mtgen shards validate`."""
