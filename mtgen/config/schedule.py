"""Numbers that change during training, as functions of the images seen alone: no state, the same on every worker."""

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WrapValidator


class Schedule(BaseModel):
    """A number that moves from `start` to `end` along half a cosine, and then stays there.

    R3GAN schedules its learning rates, gamma, beta2 and augmentation like this. Source: Huang et al. 2024, "The GAN is
    dead; long live the GAN!"; presets in the authors' `train.py`.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    start: float = Field(description="value at the start of the run")
    end: float = Field(description="value at the end of the schedule, and from then on")
    images: float = Field(
        1.0, gt=0, description="length of the schedule, images; up to 1: as a fraction of train.images"
    )


def within(**bounds: float) -> WrapValidator:
    """The validator of a key of type `float | Schedule` whose values are all within bounds.

    Args:
        bounds: `gt`, `ge`, `lt` and `le`, as in `pydantic.Field`.
    """
    finite = ConfigDict(allow_inf_nan=False)
    number = TypeAdapter[float](Annotated[float, Field(**bounds)], config=finite)
    ends = TypeAdapter[dict[str, float]](dict[str, Annotated[float, Field(**bounds)]], config=finite)

    def validate(value: Any, handler: Any) -> float | Schedule:
        if not isinstance(value, dict | Schedule):
            return number.validate_python(value)
        schedule = Schedule.model_validate(value)
        ends.validate_python({"start": schedule.start, "end": schedule.end})
        return schedule

    return WrapValidator(validate)


def value_at(value: float | Schedule, images: int, total: int) -> float:
    """The value of a setting after a number of images.

    Args:
        value: a constant, or a schedule.
        images: seen so far.
        total: `train.images`.
    """
    if not isinstance(value, Schedule):
        return value
    length = value.images * total if value.images <= 1 else value.images
    progress = min(1.0, images / length)
    return value.end + (value.start - value.end) * 0.5 * (1 + math.cos(math.pi * progress))
