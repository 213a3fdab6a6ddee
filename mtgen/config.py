"""Typed configuration: defaults < YAML < `key=value`. Every error names the key, its value and what is possible."""

import copy
import inspect
import math
import re
import reprlib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mtgen.errors import ConfigError
from mtgen.registry import Registry, find_path, suggest
from mtgen.schema import COMPONENTS
from mtgen.yaml_text import override, read_yaml

TASKS: Registry[Any] = Registry("task", "mtgen.tasks")
CONDITIONS: Registry[Any] = Registry("condition", "mtgen.conditions")
WEIGHTINGS: Registry[Any] = Registry("weighting", "mtgen.balancing")


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, an empty section has its defaults."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, values: Any) -> Any:
        return {} if values is None else values


SectionT = TypeVar("SectionT", bound=Section)


class TaskSettings(Section):
    """What every task has; a task's own file adds to it."""

    weight: float = Field(1.0, ge=0, description="factor of the task's losses, before the gradient gate; 0 switches it off")

    @property
    def needs(self) -> str | None:
        """The component that the task learns from ("class", "mask", "boxes"); `None`: images are enough."""
        return None

    @property
    def plays(self) -> bool:
        """Whether it learns with the generator, or from its logit, so that the generation task has to be on."""
        return False


class ConditionSettings(Section):
    """What every modality of conditions has; a modality's own file adds to it."""

    share: float = Field(0.95, ge=0, le=1, description="share of the samples that have it for which it is asked; the others learn without")


class Share(Section):
    """One data set of a mixture."""

    path: str = Field(min_length=1, description="folder with dataset.json and its shards, or its URL")
    weight: float = Field(1.0, gt=0, description="its share of the samples, relative to the others'")
    train: str | None = Field(None, description="split to train on; default: data.train")
    test: str | None = Field(None, description="split to evaluate on; default: data.test")


class Sound(Section):
    """What sounds are turned into: spectrograms of `mels` bands and 100 frames a second."""

    rate: int = Field(
        16_000, ge=4_000, le=48_000, description="samples a second that sounds are brought to; half of it is the highest tone"
    )
    mels: int = Field(64, ge=8, le=128, description="bands of a spectrogram")
    seconds: float = Field(1.0, ge=0.01, le=60, description="length that a sound is cut or filled up to")

    @property
    def frames(self) -> int:
        """Frames of a spectrogram, 10 ms each."""
        return max(round(self.seconds * 100), 1)


class Data(Section):
    path: str | None = Field(None, min_length=1, description="folder with dataset.json and its shards, or its URL")
    mixture: list[Share] = Field([], description="several data sets instead of data.path, each with path and weight")
    order: Literal["auto", "global", "windowed"] = Field(
        "auto", description="global: shuffle all samples; windowed: a few shards at a time; auto: windowed where shards are fetched"
    )
    window: int = Field(8, ge=1, description="shards that are shuffled together in a windowed order")
    cache: float = Field(50.0, gt=0, description="GB that fetched shards may take on a node's disk ($MTGEN_CACHE, ~/.cache/mtgen)")
    limit: int | None = Field(None, ge=1, description="only the first so many samples of each split, to overfit on purpose; default: all")
    on_damage: Literal["stop", "skip"] = Field(
        "stop", description="a damaged sample stops the run; or it is left out, or replaced, and counted"
    )
    damage_limit: float = Field(0.01, ge=0, le=1, description="largest share of damaged samples; with more of them the run stops")
    train: str = Field("train", description="split to train on")
    test: str = Field("test", description="split to evaluate on")
    channels: Literal["rgb", "grey"] = Field("rgb", description="channels that are decoded and drawn")
    crop: float = Field(1.0, gt=0, le=1, description="smallest share of the image's area that a random crop keeps; 1: centre crop")
    flip: bool = Field(False, description="mirror at random, left to right")
    colour: float = Field(0.0, ge=0, le=1, description="largest random change of brightness, contrast and saturation, as a share; 0: none")
    boxes: int = Field(32, ge=1, description="boxes of an image that are kept at most, the largest")
    prefetch: int = Field(2, ge=1, description="batches that are decoded ahead")
    tokenizer: str | None = Field(
        None, min_length=1, description="tokenizer.json that captions are read with, or its URL; default: the bytes of their UTF-8"
    )
    sound: Sound = Sound()
    labelled: dict[Literal["class", "mask", "boxes", "caption", "sound"], Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="share of the training samples whose class, mask, ... is known; the others train without it; default: 1 each"
    )


class Generator(Section):
    widths: list[int] = Field([96, 80, 64, 32], description="channels of each level, from the lowest upwards, each twice the side")
    blocks: int = Field(1, ge=1, description="residual blocks a level")
    latent: int = Field(64, ge=1, description="size of the latent z")
    learning_rate: float = Field(3e-4, gt=0)
    condition_scale: float = Field(0.25, gt=0, description="factor of the condition beside the latent; a large one drowns the latent")
    attention: int = Field(16, ge=0, description="levels of this side and below attend to the tokens of captions and sounds; 0: none")


class Discriminator(Section):
    widths: list[int] = Field([128, 96, 64, 32], description="channels of each level, from the lowest upwards, each twice the side")
    blocks: int = Field(1, ge=1, description="residual blocks a level")
    decoder: int = Field(32, ge=1, description="channels of the U-Net decoder")
    embedding: int = Field(64, ge=1, description="size of the shared representation space")
    learning_rate: float = Field(1e-3, gt=0)


class Augment(Section):
    """Augmentation in front of the discriminator: image and mask alike, real and generated alike."""

    probability: float = Field(0.6, ge=0, lt=1, description="share of samples that are changed; below 1, so that it cannot leak")
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


class Balancing(Section):
    """How the tasks' gradients are combined where they meet (docs/balancing.md)."""

    gate: str = Field("equal", description="weighting at the discriminator's features, or a class of your own by its path; none: no gate")
    discriminator: str | None = Field(None, description="weighting in the discriminator's step; default: balancing.gate")
    generator: str | None = Field(None, description="weighting in the generator's step; default: balancing.gate")
    canvas: str = Field("equal", description="weighting at the generator's canvas; none: no gate")
    gramian: Literal["features", "pooled", "layer"] = Field(
        "features", description="what is compared: gradients at all features, summed over samples and space, or of the last layer's weights"
    )
    preference: dict[str, float] = Field({}, description="task or group -> how much it counts, 1 where it is not named")
    groups: dict[str, list[str]] = Field({}, description="name -> tasks that are arbitrated as one at the discriminator's features")
    warmup: int = Field(0, ge=0, description="images over which the weights go over from equal to the weighting's")
    average: float = Field(0, ge=0, description="half-life of the Gramian's moving average, in images; 0: none")
    parameters: dict[str, dict[str, float]] = Field({}, description="weighting -> its parameters, such as {cagrad: {c: 0.4}}")

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
            raise ValueError("weighs by the tasks' losses, which do not meet at the canvas; choose one that reads gradients alone")
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
            raise ValueError("a task is in one group at most, and a group has a name of its own, no task's")
        return value

    @field_validator("parameters")
    @classmethod
    def _parameters(cls, value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for name, given in value.items():
            if name in WEIGHTINGS:
                possible = list(inspect.signature(WEIGHTINGS[name]).parameters)
                if unknown := [key for key in given if key not in possible]:
                    raise ValueError(f"{name} has no parameter {unknown[0]!r}; possible: {', '.join(possible) or 'none'}")
            elif "." not in name and ":" not in name:
                raise ValueError(f"unknown weighting {name!r}; {suggest(name, WEIGHTINGS.names())}")
        return value


class Train(Section):
    images: int = Field(200_000, ge=1, description="length of the run, in images seen; also the length of the schedules")
    start_from: str | None = Field(
        None,
        min_length=1,
        description="run, by folder or name, or checkpoint whose averaged parameters a new run begins with (fine-tuning)",
    )
    minutes: float | None = Field(None, gt=0, description="stop, with a checkpoint, after so many minutes of training")
    accumulation: int = Field(1, ge=1, description="micro-batches a step")
    warmup: int = Field(1_000, ge=0, description="images over which the learning rates rise")
    final_rate: float = Field(0.1, gt=0, le=1, description="learning rates end at this share of their peak (cosine)")
    ema: float = Field(5_000, ge=0, description="half-life of the averaged weights, in images; 0: none")
    beta2: float = Field(0.99, gt=0, lt=1, description="Adam's second beta; the first is 0")
    nonfinite_limit: int = Field(20, ge=1, description="steps in a row with a non-finite gradient before training stops")
    log_every: int = Field(2_000, ge=1, description="images between two rows of numbers")
    restarts: int = Field(3, ge=0, description="how often lost workers are replaced before the run gives up")


class Checkpoint(Section):
    every: int = Field(20_000, ge=1, description="images between two checkpoints")
    keep: int = Field(3, ge=1, description="how many are kept")


class Evaluate(Section):
    every: int = Field(20_000, ge=1, description="images between two sample grids with the quick test metrics")
    samples: int = Field(4_000, ge=100, description="generated images for `mtgen evaluate`")


class Tracking(Section):
    uri: str | None = Field(None, description="MLflow tracking URI; default: MLFLOW_TRACKING_URI, else RUNS/mlflow.db")
    experiment: str = "mtgen"


class Config(Section):
    """Everything that shapes a run."""

    name: str = Field(description="name of the run, and of its folder")
    runs: str = Field("runs", description="folder of all runs")
    seed: int = Field(0, ge=0, lt=2**31)
    workers: int = Field(1, ge=0, description="training processes that Ray places; 0: in this process, for a debugger")
    address: str | None = Field(None, description="address of a running Ray cluster; default: RAY_ADDRESS, else a local one")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="arithmetic of the networks; parameters stay fp32; auto: bf16 where the device computes it natively, else fp32"
    )
    zero_stage: int = Field(0, ge=0, description="DeepSpeed ZeRO stage: 0, 1 or 2")
    batch_size: int = Field(64, ge=2, description="samples a step, over all workers and micro-batches")
    resolution: int | tuple[int, int] = Field(32, description="side of the images, pixels; or [height, width]")
    data: Data
    generator: Generator = Generator()
    discriminator: Discriminator = Discriminator()
    augment: Augment = Augment()
    tasks: dict[str, Any] = Field(default_factory=lambda: {"generation": {}}, validate_default=True, description="task -> its settings")
    conditions: dict[str, Any] = Field(
        default_factory=lambda: {"class": {}}, validate_default=True, description="what images are asked for by -> its settings"
    )
    balancing: Balancing = Balancing()
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError("a run's name is made of letters, digits, '.', '_' and '-', and begins with a letter or digit")
        return value

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {name: TASKS[name].Settings.model_validate(settings) for name, settings in value.items() if name in TASKS}

    @field_validator("conditions")
    @classmethod
    def _conditions(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {name: CONDITIONS[name].Settings.model_validate(settings) for name, settings in value.items() if name in CONDITIONS}

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
        """What of the samples the tasks and conditions read, beside the image; class and mask always, for metrics and pictures."""
        conditions = [CONDITIONS[name].component for name in self.condition_settings()]
        wanted = {"class", "mask", *(s.needs for s in self.task_settings().values()), *conditions}
        return tuple(c for c in COMPONENTS if c in wanted)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs) / self.name

    @property
    def caption_tokens(self) -> int:
        """Length of captions in a batch, tokens."""
        return self.conditions["caption"].tokens if "caption" in self.conditions else 1

    @property
    def micro_batch(self) -> int:
        """Samples that one worker puts through the networks at once."""
        return self.batch_size // (max(self.workers, 1) * self.train.accumulation)

    def condition_settings(self) -> dict[str, ConditionSettings]:
        """The modalities that are switched on."""
        return {name: s for name, s in self.conditions.items() if s.share > 0}

    def task_settings(self) -> dict[str, TaskSettings]:
        """The tasks that are switched on."""
        return {name: s for name, s in self.tasks.items() if s.weight > 0}

    @property
    def generates(self) -> bool:
        """Whether a generator is trained; without the generation task, the discriminator's side alone is, on real images alone."""
        return "generation" in self.task_settings()

    def to_yaml(self) -> str:
        """The resolved configuration, every key written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _sections() -> dict[str, type[BaseModel]]:
    """Every section of a configuration by its dotted name; "" is the top."""
    found: dict[str, type[BaseModel]] = {"": Config}
    for key, registry in (("tasks", TASKS), ("conditions", CONDITIONS)):
        found |= {f"{key}.{name}": registry[name].Settings for name in registry}

    def add(model: type[BaseModel], parent: str) -> None:
        for name, info in model.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                found[_dotted(parent, name)] = info.annotation
                add(info.annotation, _dotted(parent, name))

    add(Config, "")
    return found


def _meant(key: str, section: str, sections: dict[str, type[BaseModel]]) -> list[str]:
    """The nearest right key to an unknown one in its own section; else the same key, or the nearest, in another."""
    own = get_close_matches(key, sections[section].model_fields, n=1, cutoff=0.6)
    if own:
        return [_dotted(section, own[0])]
    everywhere = [_dotted(name, field) for name, model in sections.items() for field in model.model_fields]
    return [k for k in everywhere if k.split(".")[-1] == key] or get_close_matches(_dotted(section, key), everywhere, n=1)


def _dotted(*parts: Any) -> str:
    return ".".join(str(part) for part in parts if part != "")


def _shown(value: Any) -> str:
    """A value on one line of bounded length; text as it was typed."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    short.maxlevel = 2
    return "null" if value is None else short.repr(value)[1:-1] if isinstance(value, str) else short.repr(value)


def _explain(error: Any, section: str, sections: dict[str, type[BaseModel]]) -> str:
    """One line for one of pydantic's errors, met in `section`."""
    parents, last = error["loc"][:-1], error["loc"][-1] if error["loc"] else ""
    section = _dotted(section, *parents)
    key, model = _dotted(section, last), sections.get(section)
    if error["type"] == "extra_forbidden" and model is not None:
        meant = _meant(str(last), section, sections)
        hint = f"did you mean {' or '.join(meant)}? " if meant else ""
        return f"{key}: unknown key; {hint}possible: {', '.join(model.model_fields)}"
    if error["type"] == "missing" and model is not None:
        description = model.model_fields[str(last)].description
        return f"{key}: is missing{f' ({description})' if description else ''}; give it in the file or as {key}=..."
    value = f"{key}={_shown(error['input'])}" if key else _shown(error["input"])
    if error["type"] == "model_type" and key in sections:
        return f"{value}: is a section, not a single value; its keys: {', '.join(sections[key].model_fields)}"
    message = error["msg"].removeprefix("Value error, ").split(", unable to")[0]
    return f"{value}: {message[0].lower() + message[1:]}"


def check(model: type[SectionT], values: dict[str, Any]) -> SectionT:
    """`values` as a section; `ConfigError` holds one line for every key at fault."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e, "", {"": model}) for e in error.errors())) from None


def _own_problems(key: str, registry: Registry[Any], values: Any) -> list[str]:
    """The errors in the `tasks` or `conditions` section, which only the tasks' and modalities' own files can judge."""
    if not isinstance(values, dict):
        return [f"{key}={_shown(values)}: a mapping from a {registry.kind}'s name to its settings; possible: {', '.join(registry)}"]
    problems, sections = [], _sections()
    for name, settings in values.items():
        if name not in registry:
            problems.append(f"{key}.{name}: unknown {registry.kind}; {suggest(str(name), registry.names())}")
            continue
        try:
            registry[name].Settings.model_validate(settings)
        except ValidationError as error:
            problems += [_explain(e, f"{key}.{name}", sections) for e in error.errors()]
    return problems


def _shares(mixture: list[Share]) -> list[float]:
    whole = sum(share.weight for share in mixture)
    return [share.weight / whole for share in mixture]


LOWEST = 4
"""Pixels of the shorter side of the pyramids' lowest level."""


def _wrong_widths(side: str, widths: list[int], config: Config) -> str | None:
    """What is wrong with a network's `widths`, given the resolution."""
    if not widths or min(widths) < 1:
        return f"{side}.widths={widths}: one positive number of channels a level, from the lowest upwards"
    shorter, factor = min(config.size), 2 ** (len(widths) - 1)
    if shorter == LOWEST * factor and not any(s % factor for s in config.size):
        return None
    levels = math.log2(shorter / LOWEST) + 1 if shorter > 0 else 0.5
    remedy = f"give {int(levels)} widths for {shorter}" if levels == int(levels) else "possible: 8, 16, 32, 64, 128, 256, 512, ..."
    if levels == int(levels) and len(widths) == levels:
        remedy = f"the longer side has to be a multiple of {factor}"
    return (
        f"resolution={_shown(config.resolution)}: {side}.widths has {len(widths)} levels, which reach {LOWEST * factor} pixels from "
        f"{LOWEST}x{LOWEST}; {remedy}"
    )


def _impossible(config: Config) -> dict[str, str]:
    """Values that are well-formed and cannot work, by the key to blame."""
    problems: dict[str, str] = {}
    for side in ("generator", "discriminator"):
        if problem := _wrong_widths(side, getattr(config, side).widths, config):
            problems[f"resolution ({side})" if problem.startswith("resolution") else f"{side}.widths"] = problem
    if config.zero_stage > 2:
        problems["zero_stage"] = (
            f"zero_stage={config.zero_stage}: possible: 0, 1, 2; stage 3 fails where a step uses a parameter more than once "
            '("Cannot free a ZeRO-3 parameter while it is still active in submodules")'
        )
    if config.precision == "fp16" and resolve_device(config) == "cpu":
        problems["precision"] = "precision=fp16: there is no fp16 training on a CPU; possible here: fp32, bf16"
    if config.device == "cuda" and resolve_device(config) == "cpu":
        problems["device"] = "device=cuda: torch sees no CUDA device on this machine; possible here: cpu, auto"
    if (config.data.path is None) == (not config.data.mixture):
        if config.data.path is None:
            problems["data.path"] = "data.path: is missing (folder with dataset.json and its shards, or its URL); give it or data.mixture"
        else:
            problems["data.path"] = f"data.path={config.data.path}: is given and data.mixture as well; keep one of them"
    if any(weight < 1 / 1000 for weight in _shares(config.data.mixture)):
        problems["data.mixture"] = "data.mixture: a weight is below 0.1% of all; raise it or leave that data set out"
    share = max(config.workers, 1) * config.train.accumulation
    if config.batch_size % share or config.batch_size < 2 * share:
        fitting = max(2, round(config.batch_size / share)) * share
        problems["batch_size"] = (
            f"batch_size={config.batch_size}: cannot be shared evenly, at least 2 samples each, by workers={config.workers} with "
            f"train.accumulation={config.train.accumulation}; nearest possible: {fitting}"
        )
    if not any(s.weight > 0 for s in config.tasks.values()):
        problems["tasks"] = f"tasks: none is switched on; possible: {', '.join(TASKS)}"
    elif not config.generates and (playing := [name for name, s in config.task_settings().items() if s.plays]):
        problems["tasks.generation"] = (
            f"tasks.generation: has to be on: {' and '.join(playing)} cannot learn without a generator; add tasks.generation={{}}"
        )
    return problems


def resolve_device(config: Config) -> str:
    """ "cpu" or "cuda": what `config.device` means on this machine."""
    import torch

    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def _native_precision(device: str) -> Literal["bf16", "fp32"]:
    """The faster of the two that need no loss scale."""
    import torch

    native = torch.cuda.is_bf16_supported() if device == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


def _without(values: dict[str, Any], location: tuple[Any, ...]) -> None:
    """Drop the key at fault, so that the other keys can still be judged by their defaults."""
    place: Any = values
    for part in location[:-1]:
        if not isinstance(place, dict) or part not in place:
            return
        place = place[part]
    if isinstance(place, dict):
        place.pop(location[-1], None)


def validate(values: dict[str, Any]) -> Config:
    """A `Config` from a mapping; `ConfigError` holds one line for every key at fault, all of them at once."""
    values = copy.deepcopy(values)
    problems = []
    for key, registry in (("tasks", TASKS), ("conditions", CONDITIONS)):
        if key in values and (found := _own_problems(key, registry, values[key])):
            problems += found
            values.pop(key)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        blamed = {str(e["loc"][0]) for e in error.errors()} | {".".join(map(str, e["loc"][:2])) for e in error.errors()}
        problems = [_explain(e, "", _sections()) for e in error.errors()] + problems
        for e in error.errors():
            _without(values, tuple(p for p in e["loc"] if not isinstance(p, int)))
        values.setdefault("name", "name")
        data = values.setdefault("data", {})
        if isinstance(data, dict) and not data.get("mixture"):
            data.setdefault("path", "path")
        try:
            rest = _impossible(Config.model_validate(values))
        except ValidationError:
            rest = {}
        problems += [text for key, text in rest.items() if key.split(" ")[0] not in blamed]
    else:
        problems += list(_impossible(config).values())
    if problems:
        raise ConfigError("\n".join(problems))
    if config.precision == "auto":
        return config.model_copy(update={"precision": _native_precision(resolve_device(config))})
    return config


def load(path: str | Path, assignments: list[str] | None = None) -> Config:
    """Read a YAML file, put the `key=value` assignments over it, and check everything.

    Raises:
        ConfigError: with one line for every key at fault.
    """
    values = read_yaml(Path(path))
    override(values, assignments or [])
    return validate(values)
