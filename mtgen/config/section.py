"""What every section of a configuration is, and the registries that files of tasks and the like fill."""

from enum import Enum
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mtgen.registry import Registry

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
