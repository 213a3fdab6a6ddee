"""The sections of a run: training, checkpoints, evaluation, launching and tracking."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from mtgen.checkpointing.retention import BestCriterion, Retention
from mtgen.config.schedule import Schedule, within
from mtgen.config.section import ConfigSection, PathKind


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
