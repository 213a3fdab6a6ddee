"""Values that are well-formed and cannot work together."""

import math

from mtgen.config.messages import shown
from mtgen.config.run import Config, ElasticConfig, resolve_device
from mtgen.config.sections import TASKS, WEIGHTINGS, BalancingConfig, MixtureConfig
from mtgen.registry import suggest


def _shares(mixture: list[MixtureConfig]) -> list[float]:
    whole = sum(share.weight for share in mixture)
    return [share.weight / whole for share in mixture]


MIN_LOWEST_LEVEL_PIXELS = 4
"""Pixels of the shorter side of the pyramids' lowest level."""


def _wrong_widths(side: str, widths: list[int], config: Config) -> str | None:
    """What is wrong with a network's `widths`, given the resolution."""
    if not widths or min(widths) < 1:
        return f"{side}.widths={widths}: one positive number of channels a level, from the lowest upwards"
    shorter, factor = min(config.size), 2 ** (len(widths) - 1)
    if shorter == MIN_LOWEST_LEVEL_PIXELS * factor and not any(s % factor for s in config.size):
        return None
    levels = math.log2(shorter / MIN_LOWEST_LEVEL_PIXELS) + 1 if shorter > 0 else 0.5
    remedy = (
        f"give {int(levels)} widths for {shorter}"
        if levels == int(levels)
        else "possible: 8, 16, 32, 64, 128, 256, 512, ..."
    )
    if levels == int(levels) and len(widths) == levels:
        remedy = f"the longer side has to be a multiple of {factor}"
    return (
        f"resolution={shown(config.resolution)}: {side}.widths has {len(widths)} levels, which reach {MIN_LOWEST_LEVEL_PIXELS * factor} pixels from "
        f"{MIN_LOWEST_LEVEL_PIXELS}x{MIN_LOWEST_LEVEL_PIXELS}; {remedy}"
    )


def _uneven(config: Config, workers: ElasticConfig) -> str | None:
    """What is wrong with the range of workers, given how a step is cut into micro-batches."""
    given, pieces = f"workers={{min: {workers.min}, max: {workers.max}}}", workers.max * config.train.accumulation
    if workers.min > workers.max:
        return f"{given}: min is above max; exchange them"
    if workers.min in config.worker_counts:
        return None
    finer = next(k for k in range(1, workers.min + 1) if (workers.max * k) % workers.min == 0)
    return (
        f"{given}: {workers.min} workers cannot share the {pieces} micro-batches of a step evenly, only "
        f"{', '.join(map(str, config.worker_counts))} can; train.accumulation={finer} lets them, or min={config.worker_counts[0]}"
    )


def find_conflicts(config: Config) -> dict[str, str]:
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
            problems["data.path"] = (
                "data.path: is missing (folder with dataset.json and its shards, or its URL); give it or data.mixture"
            )
        else:
            problems["data.path"] = f"data.path={config.data.path}: is given and data.mixture as well; keep one of them"
    if any(weight < 1 / 1000 for weight in _shares(config.data.mixture)):
        problems["data.mixture"] = "data.mixture: a weight is below 0.1% of all; raise it or leave that data set out"
    if config.elastic is not None and (problem := _uneven(config, config.elastic)):
        problems["workers"] = problem
    share = config.max_workers * config.train.accumulation
    if config.batch_size % share or config.batch_size < 2 * share:
        fitting = max(2, round(config.batch_size / share)) * share
        problems["batch_size"] = (
            f"batch_size={config.batch_size}: cannot be shared evenly, at least 2 samples each, by workers={config.max_workers} with "
            f"train.accumulation={config.train.accumulation}; nearest possible: {fitting}"
        )
    if config.checkpoint.best is not None and config.evaluate.every % config.checkpoint.every:
        problems["checkpoint.best"] = (
            f"checkpoint.best: the metric is measured every {config.evaluate.every:,} images (evaluate.every), which is no multiple of "
            f"checkpoint.every={config.checkpoint.every}: there would be no checkpoint of what was measured; make it one"
        )
    if not any(s.weight > 0 for s in config.tasks.values()):
        problems["tasks"] = f"tasks: none is switched on; possible: {', '.join(TASKS)}"
    elif not config.generates and (
        playing := [name for name, s in config.task_settings().items() if s.needs_generator]
    ):
        problems["tasks.generation"] = (
            f"tasks.generation: has to be on: {' and '.join(playing)} cannot learn without a generator; add tasks.generation={{}}"
        )
    return _unused_settings(config) | _ignored_gate_settings(config.balancing) | problems


def _unused_settings(config: Config) -> dict[str, str]:
    """What is asked for and could never learn or be measured."""
    problems, tasks = {}, config.task_settings()
    if config.augment.target is not None and not config.generates:
        problems["augment.target"] = (
            "augment.target: is measured on real and generated images, and tasks.generation is off; give augment.probability instead"
        )
    if config.data.labelled_share is not None:
        given = f"data.labelled_share={config.data.labelled_share:g}"
        if config.data.mixture:
            problems["data.labelled_share"] = (
                f"{given}: a mixture has weights; put the samples with labels into a data set of their own"
            )
        elif config.data.order == "windowed":
            problems["data.labelled_share"] = (
                f"{given}: takes samples of all shards, and data.order=windowed of a few; keep one of them"
            )
        elif not any(settings.needs for settings in tasks.values()):
            problems["data.labelled_share"] = f"{given}: no task reads labels; switch one on, or leave it out"
    if getattr(tasks.get("translation"), "domain", None) == "domain" and len(config.data.mixture) < 2:
        problems["tasks.translation.domain"] = (
            "tasks.translation.domain=domain: the run has one data set and so one domain; give two or more as data.mixture, "
            "or translate between classes with tasks.translation.domain=class"
        )
    if (
        config.generates
        and "translation" in tasks
        and config.micro_batch < (least := 2 * config.tasks["generation"].mask_every)
    ):
        problems["batch_size"] = (
            f"batch_size={config.batch_size}: a micro-batch has {config.micro_batch} samples; pairs of samples for tasks.translation "
            f"stand tasks.generation.mask_every={config.tasks['generation'].mask_every} apart, so it needs {least}; raise batch_size to "
            f"{least * config.max_workers * config.train.accumulation}, or take fewer workers or a lower train.accumulation"
        )
    return problems


def _ignored_gate_settings(balancing: BalancingConfig) -> dict[str, str]:
    """Settings of the gates that none of them would take."""
    problems = {}
    grouped = {task: group for group, tasks in balancing.groups.items() for task in tasks}
    for name, value in balancing.preference.items():
        if name in grouped:
            reason = f"is arbitrated within the group {grouped[name]!r}; prefer that, balancing.preference.{grouped[name]}={shown(value)}"
        elif name not in (possible := [*TASKS, *balancing.groups, "discriminator"]):
            reason = f"unknown task or group; {suggest(name, possible)}"
        else:
            continue
        problems[f"balancing.preference.{name}"] = f"balancing.preference.{name}={shown(value)}: {reason}"
    gates = {balancing.gate, balancing.discriminator, balancing.generator, balancing.canvas}
    for name in balancing.parameters:
        if name not in WEIGHTINGS and name not in gates:
            problems["balancing.parameters"] = (
                f"balancing.parameters: no gate has the weighting {name!r}; give it as balancing.gate, or leave its parameters out"
            )
    return problems
