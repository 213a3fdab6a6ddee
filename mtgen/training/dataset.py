"""What a run trains on: samples that carry what its tasks need, and their order."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtgen.config import CONDITIONS, Config
from mtgen.data.mixture import Samples, keep_labels, open_samples
from mtgen.data.sampler import LabelOversamplingOrder, Order, SampleOrder
from mtgen.data.tokenizer import open_tokenizer
from mtgen.errors import DataError
from mtgen.models import assets


def open_data(config: Config, cards: Mapping[str, bytes] | None = None) -> Samples:
    """The samples of the training split, checked against the tasks; a missing index is made now.

    Args:
        cards: see `mixture.card_texts`.

    Raises:
        DataError: the data cannot be read, or no sample has what a task or condition needs.
    """
    index = open_samples(config.data, "train", cards=cards)
    keep_labels(index, config.data.keep_labels, config.seed)
    wanted = [(f"tasks.{name}", settings.needs, "weight") for name, settings in config.task_settings().items()]
    wanted += [
        (f"conditions.{name}", CONDITIONS[name].component, "probability")
        for name in config.condition_settings()
        if name != "class"
    ]
    problems = [
        f"{key}: no sample of split {index.split!r} in {index.folder} has a {need}; switch it off with {key}.{switch}=0"
        for key, need, switch in wanted
        if need and not index.present[need].any()
    ]
    if config.data.label_oversampling is not None and index.remote and config.data.order == "auto":
        problems.append(
            "data.label_oversampling: takes samples from all shards, which have to be downloaded; set "
            "data.order=global and data.cache_gb to the size of all shards, or remove this option"
        )
    if problems:
        raise DataError("\n".join(problems))
    return index


def order_facts(config: Config, samples: Samples) -> dict[str, Any]:
    """What determines, besides the data, which sample is at a position and how its caption is encoded.

    A checkpoint keeps these facts, and a run resumes from it only if they are the same.
    """
    policy = config.data.order
    if policy == "auto":
        policy = "windowed" if samples.remote else "global"
    weights = [part.weight for part in config.data.mixture]
    window = config.data.window if policy == "windowed" else 0
    oversampling = config.data.label_oversampling
    tokens = open_tokenizer(config.data.tokenizer).digest if config.data.tokenizer else None
    return {
        "seed": config.seed,
        "data.order": policy,
        "data.window": window,
        "weights": weights,
        "data.tokenizer": tokens,
        "conditions.caption.encoder": assets.digest(config.caption_encoder, "conditions.caption.encoder"),
        "data.max_samples": config.data.max_samples,
        "data.label_oversampling": f"{oversampling:g} for {favored} samples"
        if oversampling and (favored := int(rare_label_mask(config, samples).sum()))
        else None,
    }


def build_order(config: Config, samples: Samples) -> SampleOrder:
    """The order of the samples: which sample is at a position."""
    data = config.data
    if data.max_samples is not None:
        return Order(min(data.max_samples, len(samples)), config.seed)
    if data.label_oversampling is not None and (favored := rare_label_mask(config, samples)).any():
        return LabelOversamplingOrder(favored, data.label_oversampling, config.seed)
    return samples.order(data.order, data.window, config.seed)


def rare_label_mask(config: Config, samples: Samples) -> NDArray[np.bool_]:
    """`[N]` bool: samples that `data.label_oversampling` oversamples.

    These are the samples with a label that a task needs and that less than this fraction of all samples has. No sample
    is oversampled if at least this fraction has such a label.
    """
    fraction = config.data.label_oversampling or 0.0
    needed = {settings.needs for settings in config.task_settings().values() if settings.needs}
    rare = [samples.present[component] for component in needed if samples.present[component].mean() < fraction]
    found = np.logical_or.reduce(rare) if rare else np.zeros(len(samples), np.bool_)
    return found & (found.mean() < fraction)
