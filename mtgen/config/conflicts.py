"""Conflicts: values that are possible alone and cannot work together, or could never have an effect."""

import math
from collections.abc import Iterator

from mtgen.config.legacy import validation_metric
from mtgen.config.messages import ConfigProblem, shown
from mtgen.config.run import Config, ElasticConfig
from mtgen.config.schedule import Schedule
from mtgen.config.section import TASKS, WEIGHTINGS
from mtgen.registry import suggest

MIN_LOWEST_LEVEL_PIXELS = 4
"""Pixels of the shorter side of the pyramids' lowest level."""

SAME_NETWORK = (
    "is the network of discriminator.backbone, whose features the generator was trained to match, so it would measure "
    "too small distances; give another one"
)
"""Why a network cannot be both. Source: Kynkäänniemi et al. 2023 (The role of ImageNet classes in FID)."""

MIN_MIXTURE_FRACTION = 1 / 1000
"""Smallest fraction of the samples that a data set of a mixture can have."""


def find_conflicts(config: Config) -> list[ConfigProblem]:
    """Conflicts between the values of a configuration whose keys are all valid by themselves."""
    checks = (
        _networks,
        _self_attention,
        _photographs,
        _system,
        _compile,
        _data,
        _lanes,
        _label_oversampling,
        _workers,
        _batch_size,
        _tasks,
        _evaluation,
        _balancing,
    )
    return [problem for check in checks for problem in check(config)]


def _networks(config: Config) -> Iterator[ConfigProblem]:
    """Widths that do not fit the resolution."""
    for network, widths in (("generator", config.generator.widths), ("discriminator", config.discriminator.widths)):
        shorter, factor = min(config.size), 2 ** (len(widths) - 1)
        if not widths or min(widths) < 1:
            text = f"{network}.widths={widths}: give one positive number of channels per level, lowest resolution first"
            yield ConfigProblem((network, "widths"), text)
        elif shorter != MIN_LOWEST_LEVEL_PIXELS * factor or any(side % factor for side in config.size):
            yield ConfigProblem(
                ("resolution",),
                f"resolution={shown(config.resolution)}: {network}.widths has {len(widths)} levels, which reach "
                f"{MIN_LOWEST_LEVEL_PIXELS * factor} pixels from {MIN_LOWEST_LEVEL_PIXELS}x{MIN_LOWEST_LEVEL_PIXELS}; "
                f"{_resolution_remedy(shorter, len(widths))}",
            )


def _self_attention(config: Config) -> Iterator[ConfigProblem]:
    """Self-attention at levels that do not exist, or where a second derivative is needed."""
    for network, settings in (("generator", config.generator), ("discriminator", config.discriminator)):
        sides = [MIN_LOWEST_LEVEL_PIXELS * 2**level for level in range(len(settings.widths))]
        key, given = (network, "self_attention"), f"{network}.self_attention={settings.self_attention}"
        if unknown := [side for side in settings.self_attention if side not in sides]:
            text = f"no level's shorter side has {unknown[0]} pixels; possible: {', '.join(map(str, sides))}"
            yield ConfigProblem(key, f"{given}: {text}")
    if config.discriminator.self_attention and config.generates and config.tasks["generation"].penalty == "exact":
        text = "torch's attention has no second derivative, which tasks.generation.penalty=exact takes; use finite"
        yield ConfigProblem(key, f"{given}: {text}")


def _resolution_remedy(shorter: int, levels: int) -> str:
    """What to do where `levels` levels do not fit an image of this shorter side, in pixels."""
    needed = math.log2(shorter / MIN_LOWEST_LEVEL_PIXELS) + 1 if shorter > 0 else 0.5
    if needed != int(needed):
        return "possible: 8, 16, 32, 64, 128, 256, 512, ..."
    if needed == levels:
        return f"the longer side has to be a multiple of {2 ** (levels - 1)}"
    return f"give {int(needed)} widths for {shorter}"


def _photographs(config: Config) -> Iterator[ConfigProblem]:
    """What pretrained features, and a trunk that only judges, cannot be combined with."""
    discriminator, tasks = config.discriminator, config.task_settings()
    backbone, extractor = discriminator.backbone, config.evaluate.extractor
    if backbone is not None and "translation" in tasks:
        text = "its penalty would go through discriminator.backbone; switch one of them off"
        yield ConfigProblem(("tasks", "translation"), f"tasks.translation: {text}")
    if backbone and extractor and (backbone.sha256 or "").lower() == extractor.sha256.lower():
        yield ConfigProblem(("evaluate", "extractor"), f"evaluate.extractor.path={extractor.path}: {SAME_NETWORK}")
    if discriminator.trunk != "separate":
        if config.generates and backbone is not None and backbone.judge is False:
            text = "one trunk predicts and judges; add discriminator.trunk=separate"
            yield ConfigProblem(("discriminator", "backbone", "judge"), f"discriminator.backbone.judge=false: {text}")
        return
    if not config.generates:
        text = "nothing is judged without the generation task; leave this key out"
        yield ConfigProblem(("discriminator", "trunk"), f"discriminator.trunk=separate: {text}")
    for name, key in (("generation", "mismatched"), ("classification", "generated"), ("translation", "weight")):
        if getattr(tasks.get(name), key, 0):
            text = "needs the trunk that also judges; set it to 0, or discriminator.trunk=shared"
            yield ConfigProblem(("tasks", name, key), f"tasks.{name}.{key}: {text}")


def _system(config: Config) -> Iterator[ConfigProblem]:
    """What DeepSpeed cannot do."""
    if config.zero_stage > 2:
        yield ConfigProblem(
            ("zero_stage",),
            f"zero_stage={config.zero_stage}: possible: 0, 1, 2; stage 3 fails where a step uses a parameter more "
            "than once "
            '("Cannot free a ZeRO-3 parameter while it is still active in submodules")',
        )


def _compile(config: Config) -> Iterator[ConfigProblem]:
    """Compiled networks in which something needs to look, and graphs of changing shapes."""
    key, mode = ("train", "compile"), config.train.compile
    if mode == "graphs" and not config.train.static_shapes:
        yield ConfigProblem(key, "train.compile=graphs: a graph has fixed shapes; add train.static_shapes=true")
    if mode == "graphs" and (config.train.accumulation > 1 or config.elastic):
        text = "a graph overwrites the gradients of the micro-batch before; set train.accumulation=1 and a fixed number"
        yield ConfigProblem(key, f"train.compile=graphs: {text} of workers, or train.compile=on")
    if mode != "off" and config.balancing.gramian_source == "layer":
        text = "reads inputs of layers, which compiled networks hide; use features or pooled"
        yield ConfigProblem(key, f"train.compile={mode}: balancing.gramian_source=layer {text}")


def _data(config: Config) -> Iterator[ConfigProblem]:
    """No data set, or both one and a mixture; a mixture with too small a weight."""
    data, whole = config.data, sum(member.weight for member in config.data.mixture)
    if data.path is None and not data.mixture:
        text = "is missing (folder with dataset.json and its shards, or its URL); give it or data.mixture"
        yield ConfigProblem(("data", "path"), f"data.path: {text}")
    if data.path is not None and data.mixture:
        text = "data.mixture is given as well; keep one of them"
        yield ConfigProblem(("data", "path"), f"data.path={data.path}: {text}")
    if any(member.weight / whole < MIN_MIXTURE_FRACTION for member in data.mixture):
        text = "a weight is below 0.1% of their sum; raise it or leave that data set out"
        yield ConfigProblem(("data", "mixture"), f"data.mixture: {text}")


def _lanes(config: Config) -> Iterator[ConfigProblem]:
    """Lanes that do not divide the batch, and settings of lanes for an order without them."""
    data, batch = config.data, config.batch_size
    if data.order in ("global", "windowed"):
        for name in ("lanes", "lane_window"):
            if (value := getattr(data, name)) is not None:
                text = f"has no effect with data.order={data.order}; set data.order=lanes, or leave this key out"
                yield ConfigProblem(("data", name), f"data.{name}={value}: {text}")
    elif data.lanes is not None and batch % data.lanes:
        divisors = [count for count in range(1, batch + 1) if batch % count == 0]
        nearest = min(divisors, key=lambda count: (abs(count - data.lanes), count))  # type: ignore[operator]
        text = f"does not divide batch_size={batch}; nearest possible: {nearest}"
        yield ConfigProblem(("data", "lanes"), f"data.lanes={data.lanes}: {text}")


def _label_oversampling(config: Config) -> Iterator[ConfigProblem]:
    """Oversampling that could have no effect."""
    data, key = config.data, ("data", "label_oversampling")
    if data.label_oversampling is None:
        return
    given = f"data.label_oversampling={data.label_oversampling:g}"
    if data.mixture:
        text = "a mixture has weights instead; put the samples with labels into a separate data set"
        yield ConfigProblem(key, f"{given}: {text}")
    elif data.order == "windowed":
        text = "it needs samples of all shards, and data.order=windowed takes a few at a time; set data.order=lanes"
        yield ConfigProblem(key, f"{given}: {text}")
    elif not any(settings.needs for settings in config.task_settings().values()):
        yield ConfigProblem(key, f"{given}: no task needs labels; switch one on, or leave this key out")


def _workers(config: Config) -> Iterator[ConfigProblem]:
    """A range of workers whose smallest number cannot share the micro-batches of a step evenly."""
    workers = config.elastic
    if workers is None:
        return
    given = f"workers={{min: {workers.min}, max: {workers.max}}}"
    if workers.min > workers.max:
        yield ConfigProblem(("workers",), f"{given}: min is above max; exchange them")
    elif workers.min not in config.worker_counts:
        yield ConfigProblem(("workers",), f"{given}: {_uneven(config, workers)}")


def _uneven(config: Config, workers: ElasticConfig) -> str:
    pieces = workers.max * config.train.accumulation
    finer = next(k for k in range(1, workers.min + 1) if (workers.max * k) % workers.min == 0)
    counts = ", ".join(map(str, config.worker_counts))
    return (
        f"{workers.min} workers cannot share the {pieces} micro-batches of a step evenly, only {counts} can; "
        f"train.accumulation={finer} lets them, or set min={config.worker_counts[0]}"
    )


def _batch_size(config: Config) -> Iterator[ConfigProblem]:
    """A batch that cannot be cut into micro-batches, or into micro-batches that translation can pair samples in."""
    pieces, tasks = config.max_workers * config.train.accumulation, config.task_settings()
    if config.batch_size % pieces or config.batch_size < 2 * pieces:
        yield ConfigProblem(
            ("batch_size",),
            f"batch_size={config.batch_size}: does not split evenly, at least 2 samples each, over "
            f"workers={config.max_workers} with "
            f"train.accumulation={config.train.accumulation}; nearest possible: "
            f"{max(2, round(config.batch_size / pieces)) * pieces}",
        )
    elif config.generates and "translation" in tasks:
        every = config.tasks["generation"].joint_every
        if config.micro_batch < 2 * every:
            yield ConfigProblem(
                ("batch_size",),
                f"batch_size={config.batch_size}: a micro-batch has {config.micro_batch} samples and needs "
                f"{2 * every}, since tasks.translation pairs samples "
                f"that are tasks.generation.joint_every={every} apart; raise batch_size to {2 * every * pieces}, or "
                "lower workers "
                "or train.accumulation",
            )


def _tasks(config: Config) -> Iterator[ConfigProblem]:
    """No task, tasks without what they depend on, and a target of augmentation without a generator."""
    tasks = config.task_settings()
    dependent = [name for name, settings in tasks.items() if settings.needs_generator]
    if not tasks:
        yield ConfigProblem(("tasks",), f"tasks: none is switched on; possible: {', '.join(TASKS)}")
    elif dependent and not config.generates:
        yield ConfigProblem(
            ("tasks", "generation"),
            f"tasks.generation: has to be on: {' and '.join(dependent)} cannot learn without a generator; add "
            f"tasks.generation={{}}",
        )
    if config.augment.target is not None and not config.generates:
        text = "is measured on real and generated images, and tasks.generation is off; give augment.probability instead"
        yield ConfigProblem(("augment", "target"), f"augment.target: {text}")
    if config.augment.target is not None and isinstance(config.augment.probability, Schedule):
        text = "adapts the probability, which then cannot follow a schedule; give augment.probability as a number"
        yield ConfigProblem(("augment", "target"), f"augment.target: {text}")
    if getattr(tasks.get("translation"), "domain", None) == "domain" and len(config.data.mixture) < 2:
        yield ConfigProblem(
            ("tasks", "translation", "domain"),
            "tasks.translation.domain=domain: the run has one data set and so one domain; give two or more as "
            "data.mixture, "
            "or translate between classes with tasks.translation.domain=class",
        )


def _evaluation(config: Config) -> Iterator[ConfigProblem]:
    """A best checkpoint by a metric of the test split, or by one that is measured where no checkpoint is written."""
    if config.checkpoint.best is not None and (metric := config.checkpoint.best.metric).startswith("test/"):
        yield ConfigProblem(
            ("checkpoint", "best", "metric"),
            f"checkpoint.best.metric={metric}: training does not read the test split; use {validation_metric(metric)}, "
            "which is measured on data.val_split",
        )
    if config.checkpoint.best is not None and config.evaluate.every % config.checkpoint.every:
        yield ConfigProblem(
            ("checkpoint", "best"),
            f"checkpoint.best: the metric is measured every {config.evaluate.every:,} images (evaluate.every), where "
            "no checkpoint is "
            f"written; make evaluate.every a multiple of checkpoint.every={config.checkpoint.every}",
        )


def _balancing(config: Config) -> Iterator[ConfigProblem]:
    """Preferences and parameters that no gate would use."""
    balancing = config.balancing
    group_of = {task: group for group, tasks in balancing.groups.items() for task in tasks}
    possible = [*TASKS, *balancing.groups, "discriminator"]
    for name, value in balancing.preference.items():
        if group := group_of.get(name):
            reason = f"is in the group {group!r}, which counts as one; set balancing.preference.{group}={shown(value)}"
        elif name not in possible:
            reason = f"unknown task or group; {suggest(name, possible)}"
        else:
            continue
        yield ConfigProblem(("balancing", "preference", name), f"balancing.preference.{name}={shown(value)}: {reason}")
    used = {balancing.weighting, balancing.discriminator, balancing.generator, balancing.canvas}
    if unused := [name for name in balancing.parameters if name not in WEIGHTINGS and name not in used]:
        text = f"no gate has the weighting {unused[0]!r}; give it as balancing.weighting, or leave its parameters out"
        yield ConfigProblem(("balancing", "parameters"), f"balancing.parameters: {text}")
