"""Keys and values of older configurations: what each is called now, and stored runs in today's names."""

import re
from typing import Any

RENAMED_KEYS = {
    "data": {
        "cache": "cache_gb",
        "limit": "max_samples",
        "train": "train_split",
        "test": "test_split",
        "colour": "color_jitter",
        "boxes": "max_boxes",
        "labelled": "keep_labels",
        "labelled_share": "label_oversampling",
    },
    "data.mixture": {"train": "train_split", "test": "test_split"},
    "tasks.generation": {"mask_every": "joint_every", "sigma": "penalty_sigma"},
    "conditions.*": {"share": "probability"},
    "balancing": {"gate": "weighting", "gramian": "gramian_source", "average": "ema_half_life"},
    "train": {
        "minutes": "max_minutes",
        "start_from": "init_from",
        "ema": "ema_half_life",
        "clip": "clip_factor",
        "restarts": "max_restarts",
        "hang_seconds": "heartbeat_timeout",
    },
}
"""Section -> old key -> new key; `conditions.*` is every condition, and a section in a list has the list's name."""

RENAMED_VALUES = {"data.channels": {"grey": "gray"}}
"""Key -> old value -> new value."""

BEST_METRIC = "checkpoint.best.metric"
"""The key whose values began with `test/` where they now begin with `val/`, see `validation_metric`."""

NETWORKS_BEFORE = {
    "tasks.segmentation": {"use_predictions": False},
    "tasks.detection": {"use_predictions": False},
}
"""Section -> key -> the value by which the networks of runs were built that were stored without the key."""

STYLES_IN_FINGERPRINTS = {"color": "colour", "gray": "grey"}
"""Style of the recipe `digits` -> its spelling in fingerprints of data sets."""

ADDED_OPTIONS = {"val": 0}
"""Option that recipes have got since -> the value that changes nothing and is left out of fingerprints."""


def renamed_keys(section: str) -> dict[str, str]:
    """Old key -> new key of a section, given by its dotted name without positions in lists."""
    return RENAMED_KEYS.get(re.sub(r"^conditions\.[^.]+$", "conditions.*", section), {})


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a stored run, as plain values, in today's keys and values.

    Only for what mtgen has stored itself: in a user's own file, an old key is an error that names the new one.
    """
    upgraded: dict[str, Any] = _upgraded(values, "")
    return upgraded


def _upgraded(value: Any, section: str) -> Any:
    if isinstance(value, list):
        return [_upgraded(entry, section) for entry in value]
    if isinstance(value, dict):
        new = renamed_keys(section)
        named = {new.get(key, key): _upgraded(inner, f"{section}.{key}".lstrip(".")) for key, inner in value.items()}
        return NETWORKS_BEFORE.get(section, {}) | named
    return validation_metric(value) if section == BEST_METRIC else RENAMED_VALUES.get(section, {}).get(value, value)


def validation_metric(name: str) -> str:
    """Today's name of a metric of snapshots, which read the test split before and called it `test/...`."""
    return re.sub("^test/", "val/", name)


def upgrade_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts by which a checkpoint describes its order of samples, under today's keys."""
    upgraded = {}
    for key, value in facts.items():
        section, _, last = key.rpartition(".")
        upgraded[f"{section}.{renamed_keys(section).get(last, last)}".lstrip(".")] = value
    return upgraded


def card_for_fingerprint(card: dict[str, Any]) -> dict[str, Any]:
    """A data set's card as fingerprints spell it, so that a data set made again matches older checkpoints."""
    made_by = card.get("made_by")
    if not isinstance(made_by, dict) or not isinstance(options := made_by.get("options"), dict):
        return card
    options = {name: value for name, value in options.items() if ADDED_OPTIONS.get(name, not value) != value}
    if (style := options.get("style")) in STYLES_IN_FINGERPRINTS:
        options["style"] = STYLES_IN_FINGERPRINTS[style]
    return {**card, "made_by": {**made_by, "options": options}}
