"""Augmentation of sounds in training: a shift, one masked strip of bands and one of frames, and nothing else."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mtgen.conditions.base import ConditionSizes
from mtgen.conditions.sound import Sound

BANDS, FRAMES = 10, 20
SIZES = ConditionSizes(classes=3, mask_classes=0, domains=1, vocabulary=1, sound=(BANDS, FRAMES), size=8)
VALUE = 0.5 + torch.arange(4.0 * BANDS * FRAMES).reshape(4, BANDS, FRAMES) / 4000  # all different, none of them silence


def sound(shift: float, mask: float) -> Sound:
    return Sound(Sound.Settings(shift=shift, mask=mask), SIZES)


@given(st.integers(0, 10_000))
def test_switched_off_it_changes_nothing(seed: int) -> None:
    random = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(sound(0, 0).augment(VALUE, random), VALUE)


@given(st.integers(0, 10_000), st.floats(0, 0.5), st.floats(0, 0.9))
def test_the_sound_is_shifted_and_two_strips_are_silent(seed: int, shift: float, mask: float) -> None:
    random = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed))
    for value, augmented in zip(VALUE, sound(shift, mask).augment(VALUE, random), strict=True):
        silent = augmented == -1
        whole_bands, whole_frames = silent.all(1), silent.all(0)
        assert torch.equal(silent, whole_bands[:, None] | whole_frames)  # strips, and nothing else
        for lost, most in ((whole_bands, mask * BANDS), (whole_frames, mask * FRAMES + shift * FRAMES + 0.5)):
            if not bool(silent.all()):
                assert int(lost.sum()) <= most
        if bool(silent.all()):
            continue
        band, frame = ((~silent).nonzero()[0]).tolist()
        source = int((value[band] == augmented[band, frame]).nonzero()[0])
        moved = frame - source
        assert abs(moved) <= shift * FRAMES + 0.5
        expected = torch.full_like(value, -1.0)
        expected[:, max(moved, 0) : FRAMES + min(moved, 0)] = value[:, max(-moved, 0) : FRAMES - max(moved, 0)]
        assert torch.equal(augmented, expected.where(~silent, -1.0))


def test_the_largest_strips_occur_and_at_all_positions() -> None:
    random = torch.rand(4000, 5, generator=torch.Generator().manual_seed(0))
    augmented = sound(0, 0.3).augment(VALUE[:1].expand(4000, -1, -1), random)
    bands, frames = (augmented == -1).all(2), (augmented == -1).all(1)
    assert int(bands.sum(1).max()) == 3 and int(frames.sum(1).max()) == 6
    assert bool(bands.any(0).all()) and bool(frames.any(0).all())
