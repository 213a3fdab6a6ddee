"""The sections of a configuration, and the registries that the tasks', modalities' and weightings' own files fill."""

import inspect
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from mtgen.checkpointing.retention import BestCriterion, Retention
from mtgen.config.schedule import Schedule, within
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
    """Marks a key whose value is a path; `mtgen.config.paths` makes it absolute where it was typed."""

    PATH = "a file or folder, or the URL of one"
    RUN = "a run, by its folder or name"
    STORE = "a tracking URI of MLflow"


class TaskSettings(ConfigSection):
    """Settings that every task has; the task's own file adds to them."""

    weight: float = Field(
        1.0, ge=0, description="factor of the task's losses, applied before the gradient gate; 0 switches the task off"
    )

    @property
    def needs(self) -> str | None:
        """The component that the task learns from, such as "mask", or `None` where images are enough."""
        return None

    @property
    def metric(self) -> str | None:
        """The quick metric, from 0 to 1, that measures how well the task is learned, or `None`."""
        return None

    @property
    def needs_generator(self) -> bool:
        """Whether the task needs the generator or its logit, and so the generation task."""
        return False


class ConditionSettings(ConfigSection):
    """Settings that every condition has; the condition's own file adds to them."""

    probability: float = Field(
        0.95,
        ge=0,
        le=1,
        description="probability that a sample which has this condition is conditioned on it; 0 switches the "
        "condition off",
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


SELF_ATTENTION = "levels with self-attention, by their shorter side in pixels, such as [16, 32]; default: none"


class GeneratorConfig(ConfigSection):
    """The generator network."""

    widths: list[int] = Field(
        [96, 80, 64, 32],
        description="channels per level, from the lowest resolution up; each level doubles the resolution",
    )
    blocks: int = Field(1, ge=1, description="residual blocks per level")
    latent: int = Field(64, ge=1, description="dimension of the latent z")
    learning_rate: Annotated[float | Schedule, within(gt=0)] = Field(
        3e-4, description="peak learning rate of the generator; or a schedule in place of train.final_rate"
    )
    condition_scale: float = Field(
        0.25, gt=0, description="scale of the condition vector relative to the latent; large values drown the latent"
    )
    attention: int = Field(
        16,
        ge=0,
        description="levels of up to this side, in pixels, attend to the tokens of captions and sounds; 0: none",
    )
    self_attention: list[int] = Field([], description=SELF_ATTENTION)


class BackboneConfig(ConfigSection):
    """A pretrained network whose features the discriminator reads beside the image (docs/how-to.md)."""

    path: Annotated[str, PathKind.PATH] = Field(
        min_length=1, description="file or URL of the network: as mtgen weights convert writes it, or TorchScript"
    )
    sha256: str | None = Field(
        None, pattern="^[0-9a-fA-F]{64}$", description="its SHA-256, hexadecimal; default: not checked"
    )
    input_side: int | None = Field(
        None,
        ge=32,
        le=2048,
        description="longer side that images are scaled to for it, pixels; default: three times the images' side, up "
        "to 224",
    )
    levels: int | None = Field(
        None, ge=1, description="levels of its features to use, from the lowest resolution up; default: all"
    )
    mean: list[Annotated[float, Field(ge=0, le=1)]] | None = Field(
        None,
        min_length=1,
        max_length=3,
        description="mean that is subtracted from images in [0, 1], per channel; default: the file's, else ImageNet's",
    )
    std: list[Annotated[float, Field(gt=0)]] | None = Field(
        None,
        min_length=1,
        max_length=3,
        description="standard deviation that images are then divided by, per channel; default: as of mean",
    )
    learning_rate_factor: float = Field(
        0.0, ge=0, le=1, description="its learning rate as a fraction of the discriminator's; 0: frozen"
    )
    judge: bool | None = Field(
        None,
        description="also judge images by its features; default: false with discriminator.trunk=separate, where "
        "predictions alone can read them",
    )
    penalty_noise: float = Field(
        0.3,
        ge=0,
        description="noise of the gradient penalty on its features, relative to that on pixels; the penalty does not "
        "go through the network",
    )

    @property
    def trainable(self) -> bool:
        """Whether it is fine-tuned."""
        return self.learning_rate_factor > 0


class DiscriminatorConfig(ConfigSection):
    """The discriminator network, which also predicts labels."""

    widths: list[int] = Field(
        [128, 96, 64, 32],
        description="channels per level, from the lowest resolution up; each level doubles the resolution",
    )
    blocks: int = Field(1, ge=1, description="residual blocks per level")
    decoder: int = Field(32, ge=1, description="channels of the U-Net decoder")
    embedding: int = Field(64, ge=1, description="dimension of the shared representation space")
    self_attention: list[int] = Field([], description=SELF_ATTENTION)
    downsampling: Literal["box", "filtered"] = Field(
        "box",
        description="box: mean of 2x2 pixels; filtered: [1,3,3,1] in both directions, which keeps fine textures from "
        "aliasing",
    )
    learning_rate: Annotated[float | Schedule, within(gt=0)] = Field(
        1e-3, description="peak learning rate of the discriminator; or a schedule in place of train.final_rate"
    )
    trunk: Literal["shared", "separate"] = Field(
        "shared",
        description="separate: judge images by a trunk of its own, so that generation takes nothing from prediction; "
        "costs more arithmetic and memory",
    )
    backbone: BackboneConfig | None = Field(
        None, description="pretrained network whose features the discriminator reads, for photographs; default: none"
    )


class AugmentConfig(ConfigSection):
    """Augmentation of the discriminator's inputs: of image and mask alike, real and generated alike."""

    probability: Annotated[float | Schedule, within(ge=0, lt=1)] = Field(
        0.6,
        description="probability that a sample is augmented, or its schedule; below 1, so that the augmentation cannot "
        "leak",
    )
    target: float | None = Field(
        None,
        gt=-1,
        lt=1,
        description="adapt the probability to hold the mean sign of the discriminator's logit gap at this value (0.6 "
        "is usual); "
        "default: fixed",
    )
    ramp: int = Field(100_000, ge=1, description="images over which an adapted probability can rise from 0 to 1")
    shift: float = Field(0.08, ge=0, le=0.5, description="largest shift, as a fraction of the image's side")
    rotate: float = Field(10.0, ge=0, le=180, description="largest rotation, degrees")
    scale: float = Field(0.1, ge=0, lt=1, description="largest change of scale, as a fraction")


class BalancingConfig(ConfigSection):
    """How the tasks' gradients are combined where they meet (docs/balancing.md)."""

    weighting: str = Field(
        "equal",
        description="weighting at the discriminator's features, by name or as the path of your own class; none: no "
        "gate",
    )
    discriminator: str | None = Field(
        None, description="weighting in the discriminator's step; default: balancing.weighting"
    )
    generator: str | None = Field(None, description="weighting in the generator's step; default: balancing.weighting")
    canvas: str = Field("equal", description="weighting at the generator's canvas; none: no gate")
    gramian_source: Literal["features", "pooled", "layer"] = Field(
        "features",
        description="gradients that are compared: features: at all shared features; pooled: summed over samples and "
        "space; "
        "layer: of the last shared layer's weights",
    )
    preference: dict[str, float] = Field({}, description="task or group -> its relative importance; default: 1 each")
    groups: dict[str, list[str]] = Field(
        {}, description="group -> tasks that count as one at the discriminator's features"
    )
    warmup: int = Field(0, ge=0, description="images over which the weights move from equal to the weighting's")
    ema_half_life: float = Field(
        0, ge=0, description="half-life of the Gramian's exponential moving average, images; 0: no average"
    )
    parameters: dict[str, dict[str, float]] = Field(
        {}, description="weighting -> its parameters, such as {cagrad: {c: 0.4}}"
    )

    @field_validator("weighting", "discriminator", "generator", "canvas")
    @classmethod
    def _known(cls, value: str | None, info: Any) -> str | None:
        possible = ["none", *WEIGHTINGS]
        if value is not None and value not in possible:
            if (found := find_path(value)) is None:
                own = ", or your own class: FILE.CLASS, PACKAGE.MODULE:CLASS"
                raise ValueError(f"unknown weighting; {suggest(value, possible)}{own}")
            return found
        if info.field_name == "canvas" and value != "none" and getattr(WEIGHTINGS[str(value)], "reads_losses", False):
            raise ValueError(
                "weights by the tasks' losses, which do not meet at the canvas; choose one that needs gradients alone"
            )
        return value

    @field_validator("preference")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        if any(number <= 0 for number in value.values()):
            raise ValueError("a preference has to be above 0; switch a task off with tasks.TASK.weight=0")
        return value

    @field_validator("groups")
    @classmethod
    def _disjoint(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        members = [task for group in value.values() for task in group]
        if unknown := [task for task in members if task not in TASKS]:
            raise ValueError(f"unknown task {unknown[0]!r}; {suggest(unknown[0], TASKS.names())}")
        if len(set(members)) != len(members) or any(name in TASKS for name in value):
            raise ValueError(
                "a task is in at most one group, and a group's name is not a task's; leave the task in one group, or "
                "rename the group"
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
                    f"unknown weighting {name!r}; {suggest(name, WEIGHTINGS.names())}, or your own class: FILE.CLASS"
                )
            else:
                found[path] = given  # under the same name as balancing.weighting has
        return found


class TrainConfig(ConfigSection):
    """Length and speed of the training."""

    images: int = Field(200_000, ge=1, description="length of the run and of its schedules, in images seen")
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="stop with a checkpoint after this many minutes of training, over all starts; default: none",
    )
    init_from: Annotated[str | None, PathKind.RUN] = Field(
        None,
        min_length=1,
        description="run (folder or name) or checkpoint whose averaged parameters initialize a new run "
        "(fine-tuning); default: none",
    )
    accumulation: int = Field(1, ge=1, description="micro-batches per step and worker")
    static_shapes: bool = Field(
        False,
        description="the same number of rows in every step, by padding with rows of weight 0: for compilers, CUDA "
        "graphs and cuDNN; costs up to a third more arithmetic",
    )
    compile: Literal["off", "on", "graphs"] = Field(
        "off",
        description="on: compile the networks with torch.compile, where launching kernels bounds a GPU; graphs: also "
        "replay them as CUDA graphs, which needs static_shapes",
    )
    warmup: int = Field(1_000, ge=0, description="images over which the learning rates rise to their peak")
    final_rate: float = Field(
        0.1,
        gt=0,
        le=1,
        description="final learning rates as a fraction of their peak (half a cosine over the run)",
    )
    ema_half_life: float = Field(
        5_000, ge=0, description="half-life of the exponential moving average of the weights, images; 0: no average"
    )
    beta2: Annotated[float | Schedule, within(gt=0, lt=1)] = Field(
        0.99, description="Adam's beta2, or its schedule; beta1 is 0"
    )
    clip_factor: float = Field(
        3.0, ge=0, description="clip gradients whose norm exceeds this multiple of its running average; 0: never"
    )
    nonfinite_limit: int = Field(
        20, ge=1, description="consecutive steps with a non-finite gradient before training stops"
    )
    log_every: int = Field(2_000, ge=1, description="images between two logged rows of metrics; more after 5,000 rows")
    max_restarts: int = Field(
        3,
        ge=0,
        description="times that lost workers are replaced within train.restart_window, without a new checkpoint, "
        "before the run fails",
    )
    restart_window: float = Field(
        360, gt=0, description="minutes in which train.max_restarts are counted; a new checkpoint begins again at 0"
    )
    heartbeat_timeout: float = Field(
        60,
        ge=2,
        description="seconds without a step, evaluation and checkpoints aside, after which a worker counts as hung "
        "and is replaced",
    )
    log_samples: bool = Field(
        False, description="record the positions of every step's samples under RUN/consumed, to verify the order"
    )


class BestMetricConfig(ConfigSection):
    """The metric by which a checkpoint is the best one."""

    metric: str = Field(min_length=1, description="name of a metric of snapshots, such as val/class_accuracy")
    mode: Literal["max", "min"] = Field("max", description="whether larger or smaller values are better")


class CheckpointConfig(ConfigSection):
    """How often checkpoints are written, which are kept, and where."""

    every: int = Field(20_000, ge=1, description="images between two checkpoints")
    keep: int = Field(3, ge=1, description="number of newest checkpoints to keep")
    keep_every: int | None = Field(None, ge=1, description="also keep one checkpoint every N images; default: none")
    best: BestMetricConfig | None = Field(
        None,
        description="also keep the best checkpoint by a metric; evaluate.every has to be a multiple of "
        "checkpoint.every; default: none",
    )
    mirror: Annotated[str | None, PathKind.PATH] = Field(
        None,
        min_length=1,
        description="folder or URL (s3://, gs://, az://, file://) to which whole checkpoints are copied; default: none",
    )

    @property
    def retention(self) -> Retention:
        """The retention policy."""
        best = None if self.best is None else BestCriterion(self.best.metric, self.best.mode == "max")
        return Retention(self.keep, self.keep_every, best)


class ExtractorConfig(ConfigSection):
    """A network file whose features compare distributions (docs/metrics.md)."""

    kind: str = Field(
        description="inception, dinov2 (safetensors), or torchscript: any network that returns one vector per image"
    )
    path: Annotated[str, PathKind.PATH] = Field(min_length=1, description="the network's file")
    sha256: str = Field(pattern="^[0-9a-fA-F]{64}$", description="its SHA-256, hexadecimal")
    name: str = Field(
        "",
        pattern="^[a-z0-9_]*$",
        description="name of a torchscript extractor in the metrics' names; default: its kind",
    )
    side: int = Field(224, ge=0, description="torchscript: side that images are resized to, pixels; 0: not resized")
    mean: list[float] = Field(
        [0.485, 0.456, 0.406],
        min_length=1,
        max_length=3,
        description="torchscript: mean that is subtracted from images in [0, 1], per channel",
    )
    std: list[float] = Field(
        [0.229, 0.224, 0.225],
        min_length=1,
        max_length=3,
        description="torchscript: standard deviation that images are then divided by, per channel",
    )

    @model_validator(mode="after")
    def _not_inceptions_name(self) -> "ExtractorConfig":
        if self.name and self.kind != "torchscript":
            raise ValueError(f"name: is for torchscript; {self.kind} has its own name")
        if self.name in ("inception", "small_cnn"):
            raise ValueError(f"name: {self.name} is reserved for the built-in extractor; choose another name")
        return self


class EvaluateConfig(ConfigSection):
    """How a run is evaluated, in training and afterwards."""

    every: int = Field(
        20_000, ge=1, description="images between two snapshots: a sample grid and the quick validation metrics"
    )
    snapshot_samples: int = Field(
        2_000,
        ge=1,
        description="samples of the validation split, and of the training split to compare them with, that a snapshot "
        "reads at most; the other workers wait meanwhile",
    )
    samples: int = Field(4_000, ge=100, description="number of images that `mtgen evaluate` generates")
    extractor: ExtractorConfig | None = Field(
        None,
        description="feature extractor for FID and similar metrics; default: a small network trained on the real "
        "images",
    )


class LaunchConfig(ConfigSection):
    """What a run asks of a cluster, and gives to its workers (docs/cluster.md)."""

    env: list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\*?$")]] = Field(
        ["NCCL_*", "TORCH_NCCL_*", "FI_*", "UCX_*", "GLOO_SOCKET_IFNAME"],
        description="environment variables that workers get from this process, by name, or all with a prefix: AWS_*; "
        "their values are not written down",
    )
    cpus_per_worker: int | None = Field(
        None, ge=1, description="CPUs of each worker; default: as many as are free for all workers at the start"
    )
    ports: str | None = Field(
        None,
        pattern="^[0-9]+-[0-9]+$",
        description="range of ports for the workers' store, such as 20000-20099; default: any free port",
    )

    @field_validator("ports")
    @classmethod
    def _range(cls, value: str | None) -> str | None:
        if value is not None:
            first, last = (int(port) for port in value.split("-"))
            if not 1024 <= first <= last <= 65535:
                raise ValueError("input should be FIRST-LAST with 1024 <= FIRST <= LAST <= 65535")
        return value

    @property
    def port_range(self) -> range:
        """The ports to try; 0 is any free port."""
        if self.ports is None:
            return range(1)
        first, last = (int(port) for port in self.ports.split("-"))
        return range(first, last + 1)


class TrackingConfig(ConfigSection):
    """Where MLflow stores the run."""

    uri: Annotated[str | None, PathKind.STORE] = Field(
        None, description="MLflow tracking URI; default: MLFLOW_TRACKING_URI, else RUNS/mlflow.db"
    )
    experiment: str = Field("mtgen", description="MLflow experiment")
    group: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="group of the run, such as a sweep; its runs are nested under one parent run in MLflow",
    )
