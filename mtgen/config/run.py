"""The root section of the configuration: everything that determines a run."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from mtgen.config.data_section import DataConfig
from mtgen.config.network_sections import AugmentConfig, BalancingConfig, DiscriminatorConfig, GeneratorConfig
from mtgen.config.run_sections import CheckpointConfig, EvaluateConfig, LaunchConfig, TrackingConfig, TrainConfig
from mtgen.config.section import CONDITIONS, TASKS, ConditionSettings, ConfigSection, PathKind, TaskSettings
from mtgen.schema import COMPONENTS


class ElasticConfig(ConfigSection):
    """A run that continues with fewer workers when nodes are lost, and with more when they return."""

    min: int = Field(ge=1, description="with fewer workers than this the run waits")
    max: int = Field(ge=1, description="most workers that the run uses; micro-batches are sized for it")
    every: float = Field(
        60,
        gt=0,
        description="seconds between two checks for more workers; the run then restarts from a checkpoint with more",
    )


class Config(ConfigSection):
    """Everything that shapes a run."""

    name: str = Field(description="name of the run and of its folder")
    runs: Annotated[str, PathKind.PATH] = Field("runs", description="folder of all runs")
    seed: int = Field(0, ge=0, lt=2**31)
    workers: int | ElasticConfig = Field(
        1,
        description="training processes, placed by Ray; 0: train in this process, for debugging; {min: 2, max: 64}: "
        "as many as fit",
    )
    address: str | None = Field(
        None, description="address of a running Ray cluster; default: RAY_ADDRESS, else a local one"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where the run has GPUs")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="arithmetic of the networks; parameters stay fp32; auto: bf16 if the device computes it "
        "natively, else fp32",
    )
    zero_stage: int = Field(0, ge=0, description="DeepSpeed ZeRO stage: 0, 1 or 2")
    batch_size: int = Field(64, ge=2, description="samples per step, over all workers and micro-batches")
    resolution: int | tuple[int, int] = Field(32, description="side of the images, pixels; or [height, width]")
    data: DataConfig
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    augment: AugmentConfig = AugmentConfig()
    tasks: dict[str, Any] = Field(
        default_factory=lambda: {"generation": {}}, validate_default=True, description="task -> its settings"
    )
    conditions: dict[str, Any] = Field(
        default_factory=lambda: {"class": {}},
        validate_default=True,
        description="condition -> its settings",
    )
    balancing: BalancingConfig = BalancingConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()
    launch: LaunchConfig = LaunchConfig()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError(
                "a run's name consists of letters, digits, '.', '_' and '-', and starts with a letter or digit"
            )
        return value

    @field_validator("resolution", mode="wrap")
    @classmethod
    def _resolution(cls, value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError("input should be a whole number of pixels, or [height, width]") from None

    @field_validator("workers", mode="wrap")
    @classmethod
    def _workers(cls, value: Any, handler: Any) -> Any:
        if isinstance(value, dict):
            return ElasticConfig.model_validate(value)
        try:
            workers = handler(value)
        except ValidationError:
            workers = -1
        if isinstance(workers, int) and workers < 0:
            raise ValueError("input should be a whole number of processes, 0 or more, or {min: N, max: M}")
        return workers

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {
            name: TASKS[name].Settings.model_validate(settings) for name, settings in value.items() if name in TASKS
        }

    @field_validator("conditions")
    @classmethod
    def _conditions(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {
            name: CONDITIONS[name].Settings.model_validate(settings)
            for name, settings in value.items()
            if name in CONDITIONS
        }

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, pixels."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution

    @property
    def base(self) -> tuple[int, int]:
        """Height and width of the lowest level of the pyramids."""
        factor = 2 ** (len(self.generator.widths) - 1)
        return self.size[0] // factor, self.size[1] // factor

    @property
    def components(self) -> tuple[str, ...]:
        """Components that tasks and conditions need besides the image; always class and mask, for metrics and grids."""
        conditions = [CONDITIONS[name].component for name in self.condition_settings()]
        wanted = {"class", "mask", *(s.needs for s in self.task_settings().values()), *conditions}
        if "boxes" in wanted:  # they name everything in the image
            wanted.add("tags")
        return tuple(c for c in COMPONENTS if c in wanted)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs) / self.name

    @property
    def caption_encoder(self) -> str | None:
        """The file of a frozen encoder that captions are read by; `None`: one that is trained with the rest."""
        return self.conditions["caption"].encoder if "caption" in self.conditions else None

    @property
    def backbone_file(self) -> str | None:
        """The file of the pretrained network that the discriminator reads; `None`: none."""
        return None if self.discriminator.backbone is None else self.discriminator.backbone.path

    @property
    def caption_tokens(self) -> int:
        """Length of captions in a batch, tokens."""
        return self.conditions["caption"].tokens if "caption" in self.conditions else 1

    @property
    def micro_batch(self) -> int:
        """Samples that one worker puts through the networks at once, however many workers there are just now."""
        return self.batch_size // (self.max_workers * self.train.accumulation)

    @property
    def max_workers(self) -> int:
        """Workers that train where nothing is missing."""
        return self.workers.max if isinstance(self.workers, ElasticConfig) else max(self.workers, 1)

    @property
    def elastic(self) -> ElasticConfig | None:
        """How the number of workers may change; `None`: it may not."""
        return self.workers if isinstance(self.workers, ElasticConfig) else None

    @property
    def worker_counts(self) -> list[int]:
        """Possible numbers of workers, ascending: those that divide the micro-batches of a step evenly."""
        if self.elastic is None:
            return [self.max_workers]
        pieces = self.max_workers * self.train.accumulation
        return [count for count in range(self.elastic.min, self.elastic.max + 1) if pieces % count == 0]

    def micro_batches(self, workers: int) -> int:
        """Micro-batches that each of so many workers has in a step."""
        return self.batch_size // (workers * self.micro_batch)

    def condition_settings(self) -> dict[str, ConditionSettings]:
        """The modalities that are switched on."""
        return {name: s for name, s in self.conditions.items() if s.probability > 0}

    def task_settings(self) -> dict[str, TaskSettings]:
        """The tasks that are switched on."""
        return {name: s for name, s in self.tasks.items() if s.weight > 0}

    @property
    def generates(self) -> bool:
        """Whether a generator is trained; without the generation task, only the discriminator is, on real images."""
        return "generation" in self.task_settings()

    @property
    def judges_separately(self) -> bool:
        """Whether canvases are judged by a trunk of its own."""
        return self.generates and self.discriminator.trunk == "separate"

    def to_yaml(self) -> str:
        """The resolved configuration, every key written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
