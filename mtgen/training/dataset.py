"""What a run trains on: samples that carry what its tasks need, and their order."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtgen.config import CONDITIONS, Config
from mtgen.data.mixture import Samples, keep_labels
from mtgen.data.orders.lanes import Lanes
from mtgen.data.orders.permutation import Order, SampleOrder
from mtgen.data.orders.policy import OrderPolicy
from mtgen.data.tokenizer import open_tokenizer
from mtgen.data.validation import open_training
from mtgen.errors import DataError
from mtgen.models import assets
from mtgen.storage.shard_cache import GB

MAX_GLOBAL_SAMPLES = 10_000_000
"""Local data sets above this size are read in lanes: nearly every sample of a global order opens another shard, and a
data set of a terabyte (100 kB per sample) does not stay in the memory of the file system's servers."""

MIN_DEFAULT_LANES = 8
"""Runs with up to this many workers have the same lanes by default, so that they read the same batches."""

MAX_LANES_PER_NODE = 8
"""Workers of a node that windows are sized for: GPUs of a node."""

NODE_WINDOW_SAMPLES = 2**18
"""Samples in the windows of a node's lanes: the least block of MosaicML Streaming (`shuffle_block_size`)."""

NODE_WINDOW_BYTES = 8 * 10**9
"""Bytes in the windows of a node's lanes, if that is less: the present and the next windows, and the shards at their
ends, have to fit into the default of `data.cache_gb`."""

VALIDATION_FACT = "data.val_split"
"""The fact of an order that tells how many training samples are held out; absent before it was possible."""

BACKBONE_FACT = "discriminator.backbone.path"
"""The fact that tells the content of the pretrained network's file; absent before there could be one."""


def open_data(config: Config, cards: Mapping[str, bytes] | None = None) -> Samples:
    """The samples to train on, checked against the tasks; a missing index is made now.

    Args:
        cards: see `mixture.card_texts`.

    Raises:
        DataError: the data cannot be read, or no sample has what a task or condition needs.
    """
    index = open_training(config.data, cards=cards)
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
    if problems:
        raise DataError("\n".join(problems))
    return index


def order_policy(config: Config, samples: Samples) -> OrderPolicy:
    """The order that the configuration asks for; what it leaves open depends on the data and the largest run."""
    data, name = config.data, config.data.order
    if name == "auto":
        spread = samples.remote or len(samples) > MAX_GLOBAL_SAMPLES
        name = "lanes" if spread and data.max_samples is None else "global"
    if name == "lanes":
        count = data.lanes or _default_lanes(config)
        window = data.lane_window or _default_lane_window(samples, count)
        return OrderPolicy(name, config.seed, window, Lanes(count, config.batch_size // count))
    return OrderPolicy(name, config.seed, data.window if name == "windowed" else 0)


def _default_lanes(config: Config) -> int:
    """One lane per worker, at least `MIN_DEFAULT_LANES`, as far as they divide the batch.

    More lanes than workers would cost a node of few workers disk space: every lane has shards of its own at any time.
    """
    most = max(config.max_workers, MIN_DEFAULT_LANES)
    return max(count for count in range(1, most + 1) if config.batch_size % count == 0)


def _default_lane_window(samples: Samples, lanes: int) -> int:
    mean_bytes = max(samples.num_bytes / max(len(samples), 1), 1)
    per_node = min(NODE_WINDOW_SAMPLES, NODE_WINDOW_BYTES / mean_bytes)
    return max(int(per_node / min(lanes, MAX_LANES_PER_NODE)), 1)


def keep_order(config: Config, facts: dict[str, Any]) -> None:
    """Fill what the configuration leaves open about the order with the `order_facts` of the run's checkpoint.

    A resumed run keeps its lanes when its number of workers changes, and its order when a default does.
    """
    data, before = config.data, facts.get("data.order")
    if data.order == "auto" and before is not None:
        data.order = before
    if data.order == before == "lanes":
        data.lanes = data.lanes or facts["data.lanes"]
        data.lane_window = data.lane_window or facts["data.lane_window"]


def order_facts(config: Config, samples: Samples) -> dict[str, Any]:
    """What determines, besides the data, which sample is at a position and how its caption is encoded.

    A checkpoint keeps these facts, and a run resumes from it only if they are the same.
    """
    policy = order_policy(config, samples)
    in_lanes = policy.name == "lanes"
    weights = [part.weight for part in config.data.mixture]
    oversampling = config.data.label_oversampling
    tokens = open_tokenizer(config.data.tokenizer).digest if config.data.tokenizer else None
    return {
        "seed": config.seed,
        "data.order": policy.name,
        "data.window": 0 if in_lanes else policy.window,
        "data.lanes": policy.lanes.count if in_lanes else None,
        "data.lane_window": policy.window if in_lanes else None,
        "batch_size": config.batch_size if in_lanes else None,
        "weights": weights,
        "data.tokenizer": tokens,
        "conditions.caption.encoder": assets.digest(config.caption_encoder, "conditions.caption.encoder"),
        BACKBONE_FACT: assets.digest(config.backbone_file, BACKBONE_FACT),
        "data.max_samples": config.data.max_samples,
        "data.label_oversampling": f"{oversampling:g} for {favored} samples"
        if oversampling and (favored := int(rare_label_mask(config, samples).sum()))
        else None,
        VALIDATION_FACT: f"{held_out:,} training samples" if (held_out := samples.whole - len(samples)) else None,
    }


def build_order(config: Config, samples: Samples) -> SampleOrder:
    """The order of the samples: which sample is at a position."""
    data, policy = config.data, order_policy(config, samples)
    if data.max_samples is not None:
        return Order(min(data.max_samples, len(samples)), config.seed)
    if data.label_oversampling is not None and (favored := rare_label_mask(config, samples)).any():
        return policy.oversampled(samples.sizes, favored, data.label_oversampling)
    return samples.order(policy)


def cache_shortage(config: Config, samples: Samples, workers: int, workers_on_node: int) -> str | None:
    """What is wrong if the present and the next windows of a node's lanes do not fit into its cache, or `None`."""
    policy = order_policy(config, samples)
    if not samples.remote or policy.name != "lanes":
        return None
    lanes = -(-policy.lanes.count * workers_on_node // workers)
    window = min(policy.window, len(samples) / policy.lanes.count) * samples.num_bytes / len(samples)
    shard = samples.num_bytes / np.count_nonzero(samples.sizes)
    needed = min(2 * lanes * (window + shard), samples.num_bytes) / GB
    if needed <= config.data.cache_gb:
        return None
    return (
        f"data.cache_gb={config.data.cache_gb:g}: the shuffle windows of this node's {lanes} lanes take about "
        f"{needed:.3g} GB, so that shards are downloaded more than once; raise data.cache_gb, or start a new run with "
        "fewer data.lanes or a smaller data.lane_window"
    )


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
