"""The sections of the networks, of augmentation, and of how gradients are balanced."""

import inspect
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mtgen.config.schedule import Schedule, within
from mtgen.config.section import (
    TASKS,
    WEIGHTINGS,
    ConfigSection,
    PathKind,
)
from mtgen.registry import find_path, suggest

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
