"""The section `data`: what a run reads, and how."""

from typing import Annotated, Literal

from pydantic import Field

from mtgen.config.section import (
    ConfigSection,
    PathKind,
)


class MixtureConfig(ConfigSection):
    """One data set of a mixture."""

    path: Annotated[str, PathKind.PATH] = Field(
        min_length=1, description="folder with dataset.json and its shards, or its URL"
    )
    weight: float = Field(1.0, gt=0, description="sampling weight, relative to the other data sets")
    train_split: str | None = Field(None, description="split to train on; default: data.train_split")
    val_split: str | None = Field(None, description="split to validate on; default: data.val_split")
    test_split: str | None = Field(None, description="split to evaluate on; default: data.test_split")


class SoundConfig(ConfigSection):
    """How sounds become spectrograms of `mels` bands and 100 frames per second."""

    rate: int = Field(
        16_000,
        ge=4_000,
        le=48_000,
        description="sample rate that sounds are resampled to, Hz; half of it is the highest frequency kept",
    )
    mels: int = Field(64, ge=8, le=128, description="mel bands of the spectrogram")
    seconds: float = Field(1.0, ge=0.01, le=60, description="length that sounds are cut or padded to, seconds")

    @property
    def frames(self) -> int:
        """Frames of a spectrogram, 10 ms each."""
        return max(round(self.seconds * 100), 1)


class DataConfig(ConfigSection):
    """The data to train, validate and test on, and how samples are read."""

    path: Annotated[str | None, PathKind.PATH] = Field(
        None, min_length=1, description="folder with dataset.json and its shards, or its URL"
    )
    mixture: list[MixtureConfig] = Field(
        [], description="several data sets in place of data.path, each with its path and weight"
    )
    order: Literal["auto", "global", "windowed", "lanes"] = Field(
        "auto",
        description="global: shuffle all samples; lanes: every worker shuffles its own part of the shards, window by "
        "window; windowed: all workers shuffle the same few shards; auto: lanes for remote shards and more than 10 "
        "million samples, else global; a resumed run keeps its order",
    )
    window: int = Field(8, ge=1, description="number of shards shuffled together in the windowed order")
    lanes: int | None = Field(
        None,
        ge=1,
        description="parts that the shards of an epoch are divided into, at best one per worker; a divisor of "
        "batch_size; default: the largest one up to the number of workers, or 8 with fewer; a resumed run keeps its "
        "lanes",
    )
    lane_window: int | None = Field(
        None,
        ge=1,
        description="samples of a lane that are shuffled together; default: an eighth of 262,144 samples or of 8 GB, "
        "whichever is less",
    )
    cache_gb: float = Field(
        50.0,
        gt=0,
        description="disk space per node for fetched shards, GB; the folder is $MTGEN_CACHE, else ~/.cache/mtgen",
    )
    patience: float = Field(
        3600.0,
        ge=0,
        description="seconds that training waits for a store that does not answer, with a warning every minute; then "
        "the workers are restarted (train.max_restarts), or Slurm requeues the job",
    )
    max_samples: int | None = Field(
        None, ge=1, description="use only the first N samples of each split, to overfit on purpose; default: all"
    )
    on_damage: Literal["stop", "skip"] = Field(
        "stop", description="stop: end the run at a damaged sample; skip: leave it out or replace it, and count it"
    )
    damage_limit: float = Field(
        0.01, ge=0, le=1, description="largest fraction of damaged samples; the run stops above it"
    )
    train_split: str = Field("train", description="split to train on")
    val_split: str | None = Field(
        None,
        description="split that snapshots, alarms and checkpoint.best read; default: val, else samples that are held "
        "out of the training split",
    )
    test_split: str = Field("test", description="split that `mtgen evaluate` reads")
    channels: Literal["rgb", "gray"] = Field("rgb", description="channels that are decoded and generated")
    crop: float = Field(
        1.0, gt=0, le=1, description="smallest fraction of the image's area that a random crop keeps; 1: center crop"
    )
    flip: bool = Field(False, description="mirror images left to right at random")
    color_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="largest random change of brightness, contrast and saturation, as a fraction; 0: none",
    )
    max_boxes: int = Field(32, ge=1, description="largest number of boxes per image; the largest boxes are kept")
    prefetch: int = Field(2, ge=1, description="number of batches decoded ahead")
    tokenizer: Annotated[str | None, PathKind.PATH] = Field(
        None,
        min_length=1,
        description="tokenizer.json for captions, or its URL; default: the bytes of their UTF-8",
    )
    sound: SoundConfig = SoundConfig()
    keep_labels: dict[
        Literal["class", "mask", "boxes", "tags", "caption", "sound"], Annotated[float, Field(ge=0, le=1)]
    ] = Field(
        {},
        description="fraction of the training samples that keep their class, mask, ..., to train with fewer "
        "labels; default: 1 each",
    )
    label_oversampling: float | None = Field(
        None,
        ge=0.001,
        le=0.999,
        description="least fraction of the training samples that carry a label which a task needs; such samples are "
        "oversampled up to "
        "it where fewer carry one; default: no oversampling",
    )
