"""The sections of a configuration, and the registries that the tasks', modalities' and weightings' own files fill."""

import inspect
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mtgen.checkpointing.retention import BestCriterion, Retention
from mtgen.registry import Registry, find_path, suggest

TASKS: Registry[Any] = Registry("task", "mtgen.tasks")
CONDITIONS: Registry[Any] = Registry("condition", "mtgen.conditions")
WEIGHTINGS: Registry[Any] = Registry("weighting", "mtgen.balancing.weightings")
EXTRACTORS: Registry[Any] = Registry("feature extractor", "mtgen.evaluation.extractors")


class ConfigSection(BaseModel):
    """A part of the configuration: unknown keys are errors, an empty section has its defaults."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, values: Any) -> Any:
        return {} if values is None else values


SectionT = TypeVar("SectionT", bound=ConfigSection)


class PathKind(Enum):
    """Marks a key whose text names something by its path, and what: it is made absolute where it was typed (`mtgen.config.paths`)."""

    PATH = "a file or folder, or the URL of one"
    RUN = "a run, by its folder or name"
    STORE = "a tracking URI of MLflow"


class TaskSettings(ConfigSection):
    """What every task has; a task's own file adds to it."""

    weight: float = Field(
        1.0, ge=0, description="factor of the task's losses, before the gradient gate; 0 switches it off"
    )

    @property
    def needs(self) -> str | None:
        """The component that the task learns from ("class", "mask", "boxes"); `None`: images are enough."""
        return None

    @property
    def metric(self) -> str | None:
        """The quick metric, from 0 to 1, that says how well the task is learned; `None`: there is none."""
        return None

    @property
    def needs_generator(self) -> bool:
        """Whether it learns with the generator, or from its logit, so that the generation task has to be on."""
        return False


class ConditionSettings(ConfigSection):
    """What every modality of conditions has; a modality's own file adds to it."""

    share: float = Field(
        0.95,
        ge=0,
        le=1,
        description="share of the samples that have it for which it is asked; the others learn without",
    )


class MixtureConfig(ConfigSection):
    """One data set of a mixture."""

    path: Annotated[str, PathKind.PATH] = Field(
        min_length=1, description="folder with dataset.json and its shards, or its URL"
    )
    weight: float = Field(1.0, gt=0, description="its share of the samples, relative to the others'")
    train: str | None = Field(None, description="split to train on; default: data.train")
    test: str | None = Field(None, description="split to evaluate on; default: data.test")


class SoundConfig(ConfigSection):
    """What sounds are turned into: spectrograms of `mels` bands and 100 frames a second."""

    rate: int = Field(
        16_000,
        ge=4_000,
        le=48_000,
        description="samples a second that sounds are brought to; half of it is the highest tone",
    )
    mels: int = Field(64, ge=8, le=128, description="bands of a spectrogram")
    seconds: float = Field(1.0, ge=0.01, le=60, description="length that a sound is cut or filled up to")

    @property
    def frames(self) -> int:
        """Frames of a spectrogram, 10 ms each."""
        return max(round(self.seconds * 100), 1)


class DataConfig(ConfigSection):
    """What is learned from, and how it is read."""

    path: Annotated[str | None, PathKind.PATH] = Field(
        None, min_length=1, description="folder with dataset.json and its shards, or its URL"
    )
    mixture: list[MixtureConfig] = Field(
        [], description="several data sets instead of data.path, each with path and weight"
    )
    order: Literal["auto", "global", "windowed"] = Field(
        "auto",
        description="global: shuffle all samples; windowed: a few shards at a time; auto: windowed where shards are fetched",
    )
    window: int = Field(8, ge=1, description="shards that are shuffled together in a windowed order")
    cache: float = Field(
        50.0, gt=0, description="GB that fetched shards may take on a node's disk ($MTGEN_CACHE, ~/.cache/mtgen)"
    )
    limit: int | None = Field(
        None, ge=1, description="only the first so many samples of each split, to overfit on purpose; default: all"
    )
    on_damage: Literal["stop", "skip"] = Field(
        "stop", description="a damaged sample stops the run; or it is left out, or replaced, and counted"
    )
    damage_limit: float = Field(
        0.01, ge=0, le=1, description="largest share of damaged samples; with more of them the run stops"
    )
    train: str = Field("train", description="split to train on")
    test: str = Field("test", description="split to evaluate on")
    channels: Literal["rgb", "grey"] = Field("rgb", description="channels that are decoded and drawn")
    crop: float = Field(
        1.0, gt=0, le=1, description="smallest share of the image's area that a random crop keeps; 1: center crop"
    )
    flip: bool = Field(False, description="mirror at random, left to right")
    colour: float = Field(
        0.0, ge=0, le=1, description="largest random change of brightness, contrast and saturation, as a share; 0: none"
    )
    boxes: int = Field(32, ge=1, description="boxes of an image that are kept at most, the largest")
    prefetch: int = Field(2, ge=1, description="batches that are decoded ahead")
    tokenizer: Annotated[str | None, PathKind.PATH] = Field(
        None,
        min_length=1,
        description="tokenizer.json that captions are read with, or its URL; default: the bytes of their UTF-8",
    )
    sound: SoundConfig = SoundConfig()
    labelled: dict[Literal["class", "mask", "boxes", "caption", "sound"], Annotated[float, Field(ge=0, le=1)]] = Field(
        {},
        description="share of the training samples whose class, mask, ... is known; the others train without it; default: 1 each",
    )
    labelled_share: float | None = Field(
        None,
        ge=0.001,
        le=0.999,
        description="the least share of what is trained on that goes to samples with a label that a task reads and that fewer have; "
        "default: as it comes",
    )


class GeneratorConfig(ConfigSection):
    """The network that draws."""

    widths: list[int] = Field(
        [96, 80, 64, 32], description="channels of each level, from the lowest upwards, each twice the side"
    )
    blocks: int = Field(1, ge=1, description="residual blocks a level")
    latent: int = Field(64, ge=1, description="size of the latent z")
    learning_rate: float = Field(3e-4, gt=0)
    condition_scale: float = Field(
        0.25, gt=0, description="factor of the condition beside the latent; a large one drowns the latent"
    )
    attention: int = Field(
        16, ge=0, description="levels of this side and below attend to the tokens of captions and sounds; 0: none"
    )


class DiscriminatorConfig(ConfigSection):
    """The network that judges and reads."""

    widths: list[int] = Field(
        [128, 96, 64, 32], description="channels of each level, from the lowest upwards, each twice the side"
    )
    blocks: int = Field(1, ge=1, description="residual blocks a level")
    decoder: int = Field(32, ge=1, description="channels of the U-Net decoder")
    embedding: int = Field(64, ge=1, description="size of the shared representation space")
    learning_rate: float = Field(1e-3, gt=0)


class AugmentConfig(ConfigSection):
    """Augmentation in front of the discriminator: image and mask alike, real and generated alike."""

    probability: float = Field(
        0.6, ge=0, lt=1, description="share of samples that are changed; below 1, so that it cannot leak"
    )
    target: float | None = Field(
        None,
        gt=-1,
        lt=1,
        description="adapt the share so that the discriminator prefers real samples this much (mean sign, 0.6 is usual); default: fixed",
    )
    ramp: int = Field(100_000, ge=1, description="images over which an adapted share may rise from 0 to 1")
    shift: float = Field(0.08, ge=0, le=0.5, description="largest shift, as a share of the side")
    rotate: float = Field(10.0, ge=0, le=180, description="largest rotation, degrees")
    scale: float = Field(0.1, ge=0, lt=1, description="largest change of size, as a share")


class BalancingConfig(ConfigSection):
    """How the tasks' gradients are combined where they meet (docs/balancing.md)."""

    gate: str = Field(
        "equal",
        description="weighting at the discriminator's features, or a class of your own by its path; none: no gate",
    )
    discriminator: str | None = Field(
        None, description="weighting in the discriminator's step; default: balancing.gate"
    )
    generator: str | None = Field(None, description="weighting in the generator's step; default: balancing.gate")
    canvas: str = Field("equal", description="weighting at the generator's canvas; none: no gate")
    gramian: Literal["features", "pooled", "layer"] = Field(
        "features",
        description="what is compared: gradients at all features, summed over samples and space, or of the last layer's weights",
    )
    preference: dict[str, float] = Field({}, description="task or group -> how much it counts, 1 where it is not named")
    groups: dict[str, list[str]] = Field(
        {}, description="name -> tasks that are arbitrated as one at the discriminator's features"
    )
    warmup: int = Field(0, ge=0, description="images over which the weights go over from equal to the weighting's")
    average: float = Field(0, ge=0, description="half-life of the Gramian's moving average, in images; 0: none")
    parameters: dict[str, dict[str, float]] = Field(
        {}, description="weighting -> its parameters, such as {cagrad: {c: 0.4}}"
    )

    @field_validator("gate", "discriminator", "generator", "canvas")
    @classmethod
    def _known(cls, value: str | None, info: Any) -> str | None:
        possible = ["none", *WEIGHTINGS]
        if value is not None and value not in possible:
            if (found := find_path(value)) is None:
                own = ", or a class of your own: FILE.CLASS, PACKAGE.MODULE:CLASS"
                raise ValueError(f"unknown weighting; {suggest(value, possible)}{own}")
            return found
        if info.field_name == "canvas" and value != "none" and getattr(WEIGHTINGS[str(value)], "reads_losses", False):
            raise ValueError(
                "weighs by the tasks' losses, which do not meet at the canvas; choose one that reads gradients alone"
            )
        return value

    @field_validator("preference")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        if any(number <= 0 for number in value.values()):
            raise ValueError("a preference is above 0; switch a task off with tasks.TASK.weight=0")
        return value

    @field_validator("groups")
    @classmethod
    def _disjoint(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        members = [task for group in value.values() for task in group]
        if unknown := [task for task in members if task not in TASKS]:
            raise ValueError(f"unknown task {unknown[0]!r}; {suggest(unknown[0], TASKS.names())}")
        if len(set(members)) != len(members) or any(name in TASKS for name in value):
            raise ValueError(
                "a task is in one group at most, and a group has a name of its own, no task's; leave it in one, or rename the group"
            )
        return value

    @field_validator("parameters")
    @classmethod
    def _parameters(cls, value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        found = {}
        for name, given in value.items():
            if name in WEIGHTINGS:
                possible = list(inspect.signature(WEIGHTINGS[name]).parameters)
                if unknown := [key for key in given if key not in possible]:
                    raise ValueError(
                        f"{name} has no parameter {unknown[0]!r}; possible: {', '.join(possible) or 'none'}"
                    )
                WEIGHTINGS[name](**given)  # which says what is out of range
                found[name] = given
            elif (path := find_path(name)) is None:
                raise ValueError(
                    f"unknown weighting {name!r}; {suggest(name, WEIGHTINGS.names())}, or a class of your own: FILE.CLASS"
                )
            else:
                found[path] = given  # under the same name as the gate's
        return found


class TrainConfig(ConfigSection):
    """How long and how fast is learned."""

    images: int = Field(
        200_000, ge=1, description="length of the run, in images seen; also the length of the schedules"
    )
    minutes: float | None = Field(None, gt=0, description="stop, with a checkpoint, after so many minutes of training")
    start_from: Annotated[str | None, PathKind.RUN] = Field(
        None,
        min_length=1,
        description="run, by folder or name, or checkpoint whose averaged parameters a new run begins with (fine-tuning)",
    )
    accumulation: int = Field(1, ge=1, description="micro-batches a step")
    warmup: int = Field(1_000, ge=0, description="images over which the learning rates rise")
    final_rate: float = Field(0.1, gt=0, le=1, description="learning rates end at this share of their peak (cosine)")
    ema: float = Field(5_000, ge=0, description="half-life of the averaged weights, in images; 0: none")
    beta2: float = Field(0.99, gt=0, lt=1, description="Adam's second beta; the first is 0")
    clip: float = Field(
        3.0, ge=0, description="a gradient longer than so many times the usual is cut to that; 0: none is"
    )
    nonfinite_limit: int = Field(
        20, ge=1, description="steps in a row with a non-finite gradient before training stops"
    )
    log_every: int = Field(2_000, ge=1, description="images between two rows of numbers")
    restarts: int = Field(3, ge=0, description="how often lost workers are replaced before the run gives up")
    hang_seconds: float = Field(
        60,
        ge=2,
        description="a worker that makes no step for so long, outside of evaluation and the like, hangs and is replaced",
    )
    log_samples: bool = Field(
        False, description="write down the positions of every step's samples, to prove the order: RUN/consumed"
    )


class BestMetricConfig(ConfigSection):
    """What makes a checkpoint the best one."""

    metric: str = Field(min_length=1, description="name of a quick test metric, such as test/class_accuracy")
    mode: Literal["max", "min"] = Field("max", description="whether a large or a small value is good")


class CheckpointConfig(ConfigSection):
    """What is kept of a run, how often and where."""

    every: int = Field(20_000, ge=1, description="images between two checkpoints")
    keep: int = Field(3, ge=1, description="how many are kept, the newest")
    keep_every: int | None = Field(None, ge=1, description="beside these, one every so many images; default: none")
    best: BestMetricConfig | None = Field(
        None,
        description="beside these, the best by a metric, where evaluate.every is a multiple of checkpoint.every; default: none",
    )
    mirror: Annotated[str | None, PathKind.PATH] = Field(
        None,
        min_length=1,
        description="folder or URL (s3://, gs://, az://, file://) to which whole checkpoints are copied; default: none",
    )

    @property
    def retention(self) -> Retention:
        """Which checkpoints stay."""
        best = None if self.best is None else BestCriterion(self.best.metric, self.best.mode == "max")
        return Retention(self.keep, self.keep_every, best)


class ExtractorConfig(ConfigSection):
    """A file with the network whose features distributions are compared by (docs/metrics.md)."""

    kind: str = Field(
        description="inception, dinov2 (safetensors), or torchscript: any network that gives one vector an image"
    )
    path: Annotated[str, PathKind.PATH] = Field(min_length=1, description="the file")
    sha256: str = Field(pattern="^[0-9a-fA-F]{64}$", description="its SHA-256, hexadecimal")
    name: str = Field(
        "", pattern="^[a-z0-9_]*$", description="what it is called in the metrics' names; default: its kind"
    )
    side: int = Field(224, ge=0, description="torchscript: pixels that images are resized to; 0: left as they are")
    mean: list[float] = Field(
        [0.485, 0.456, 0.406], min_length=1, max_length=3, description="torchscript: taken from images in 0 to 1"
    )
    std: list[float] = Field(
        [0.229, 0.224, 0.225], min_length=1, max_length=3, description="torchscript: what they are divided by then"
    )

    @model_validator(mode="after")
    def _not_inceptions_name(self) -> "ExtractorConfig":
        if self.name and self.kind != "torchscript":
            raise ValueError(f"name: is for torchscript; {self.kind} has its own")
        if self.name in ("inception", "small_cnn"):
            raise ValueError(f"name: {self.name} is another extractor's, whose numbers these are not")
        return self


class EvaluateConfig(ConfigSection):
    """How a run is measured, while it trains and afterwards."""

    every: int = Field(20_000, ge=1, description="images between two sample grids with the quick test metrics")
    samples: int = Field(4_000, ge=100, description="generated images for `mtgen evaluate`")
    extractor: ExtractorConfig | None = Field(
        None, description="features for FID and its kin; default: a small network trained on the real images"
    )


class TrackingConfig(ConfigSection):
    """Where MLflow keeps the run."""

    uri: Annotated[str | None, PathKind.STORE] = Field(
        None, description="MLflow tracking URI; default: MLFLOW_TRACKING_URI, else RUNS/mlflow.db"
    )
    experiment: str = "mtgen"
    group: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="runs of one group, such as a sweep, lie under one run in MLflow",
    )
