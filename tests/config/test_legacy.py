"""Configurations of before the keys were renamed: an old key of a user is an error, a stored run is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import toy

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.retention import Retention
from mtgen.config import find_entry, legacy, load, parse_options, validate
from mtgen.config.messages import sections
from mtgen.data.index import open_index
from mtgen.errors import ConfigError
from mtgen.launchers.driver import launch
from mtgen.models.loading import config_of, describe, load_run
from mtgen.report import write_report
from mtgen.report.run_record import read_record
from mtgen.shards.make import make
from mtgen.shards.recipe import RECIPES
from mtgen.tracking.journal import JOURNAL_FILE
from mtgen.training.dataset import VALIDATION_FACT

OLD_CONFIG = """\
name: digits-all-32
runs: runs
seed: 0
workers: 0
address: null
device: auto
precision: bf16
zero_stage: 0
batch_size: 32
resolution: 32
data:
  path: data_shards/digits
  mixture: []
  order: auto
  window: 8
  cache: 50.0
  limit: null
  on_damage: stop
  damage_limit: 0.01
  train: train
  test: test
  channels: grey
  crop: 1.0
  flip: false
  colour: 0.0
  boxes: 4
  prefetch: 2
  tokenizer: null
  sound:
    rate: 8000
    mels: 40
    seconds: 0.6
  labelled: {}
  labelled_share: null
generator:
  widths:
  - 48
  - 40
  - 32
  - 16
  blocks: 1
  latent: 64
  learning_rate: 0.0006
  condition_scale: 0.25
  attention: 8
discriminator:
  widths:
  - 80
  - 64
  - 48
  - 24
  blocks: 1
  decoder: 32
  embedding: 64
  learning_rate: 0.001
augment:
  probability: 0.3
  target: null
  ramp: 100000
  shift: 0.08
  rotate: 10.0
  scale: 0.1
tasks:
  generation:
    weight: 1.0
    gamma: 1.0
    penalty: finite
    sigma: null
    penalty_every: 4
    mask_every: 4
    joint_gradient: false
  classification:
    weight: 1.0
    agreement: 0.1
    smoothing: 0.0
  segmentation:
    weight: 8.0
    agreement: 0.05
    distillation: 0.1
  detection:
    weight: 0.5
    stride: 2
    size: 5.0
    agreement: 0.1
    distillation: 0.2
  reconstruction:
    weight: 0.5
    kl: 0.0002
    free_bits: 0.0
    warmup: 0
    features: 0.0
  alignment:
    weight: 0.3
    between: 0.5
    mismatched: 0.5
    agreement: 0.1
  translation:
    weight: 0.3
    domain: class
    every: 4
    side: 8
    channels: 8
    adversarial: 1.0
    gamma: 1.0
    identity: 3.0
    cycle: 3.0
    keep: 0.5
conditions:
  class:
    share: 0.5
  caption:
    share: 0.4
    tokens: 8
    layers: 1
    encoder: null
  sound:
    share: 0.6
    layers: 1
    shift: 0.1
    mask: 0.2
  image:
    share: 0.1
  layout:
    share: 0.15
  boxes:
    share: 0.15
balancing:
  gate: equal
  discriminator: null
  generator: null
  canvas: equal
  gramian: features
  preference: {}
  groups: {}
  warmup: 0
  average: 0.0
  parameters: {}
train:
  images: 140000
  minutes: null
  start_from: null
  accumulation: 1
  warmup: 1000
  final_rate: 0.1
  ema: 4000.0
  beta2: 0.99
  clip: 3.0
  nonfinite_limit: 20
  log_every: 2000
  restarts: 3
  hang_seconds: 60.0
  log_samples: false
checkpoint:
  every: 20000
  keep: 3
  keep_every: null
  best: null
  mirror: null
evaluate:
  every: 40000
  samples: 4000
  extractor: null
tracking:
  uri: null
  experiment: mtgen
  group: null
"""
"""`config.yaml` of a run of digits-all-32 that version 0.1.0 of a6ccd40 wrote, with other folders."""

OLD_ORDER = {
    "seed": 0,
    "data.order": "global",
    "data.window": 0,
    "weights": [],
    "data.tokenizer": None,
    "conditions.caption.encoder": None,
    "data.limit": None,
    "data.labelled_share": None,
}
"""`order` in `state.json` of the same run."""

RENAMED = [(section, old, new) for section, keys in legacy.RENAMED_KEYS.items() for old, new in keys.items()]


def old_name(key: str) -> str:
    """Today's dotted key as it was called before."""
    for section, old, new in RENAMED:
        pattern = section.split(".")
        *parents, last = key.split(".")
        if (
            last == new
            and len(parents) == len(pattern)
            and all(p in ("*", q) for p, q in zip(pattern, parents, strict=True))
        ):
            return ".".join([*parents, old])
    return key


ADDED = {
    "generator.self_attention",
    "discriminator.self_attention",
    "discriminator.downsampling",
    "evaluate.snapshot_samples",
    "discriminator.backbone",
    "discriminator.trunk",
    "train.static_shapes",
    "train.compile",
    "data.patience",
    "train.restart_window",
    "launch",
    "tasks.generation.hard_labels",
    "tasks.generation.mismatched",
    "tasks.segmentation.use_predictions",
    "tasks.detection.use_predictions",
    "data.val_split",
    "data.mixture.val_split",
    "data.lanes",
    "data.lane_window",
    "conditions.image.noise",
    "tasks.classification.generated",
    "tasks.classification.implied",
    "tasks.segmentation.layout",
    "tasks.segmentation.weak",
    "tasks.detection.layout",
    *(f"tasks.{task}.self_training" for task in ("classification", "segmentation", "detection")),
}
"""Keys that are new since."""


def downgraded(values: Any, section: str = "") -> Any:
    """A configuration with the keys and values of before."""
    if isinstance(values, list):
        return [downgraded(value, section) for value in values]
    if not isinstance(values, dict):
        return {"gray": "grey"}.get(values, values) if section == "data.channels" else values
    keys = {key: name for key in values if (name := f"{section}.{key}".lstrip(".")) not in ADDED}
    return {old_name(name).split(".")[-1]: downgraded(values[key], name) for key, name in keys.items()}


def test_the_new_names_are_keys_and_the_old_names_are_not() -> None:
    known = sections()
    for section, old, new in RENAMED:
        fields = known["conditions.class" if section == "conditions.*" else section].model_fields
        assert new in fields and old not in fields


@pytest.mark.parametrize(("section", "old", "new"), RENAMED)
def test_an_old_key_is_one_error_that_names_the_new_key(section: str, old: str, new: str, tmp_path: Path) -> None:
    where = section.replace("*", "caption")
    entry = f"{{path: a, {old}: 1}}" if section == "data.mixture" else ""
    file = tmp_path / "c.yaml"
    file.write_text("name: n\ndata: {path: a}\n" if not entry else "name: n\n")
    with pytest.raises(ConfigError) as refused:
        load(file, [f"data.mixture=[{entry}]" if entry else f"{where}.{old}=1"])
    where += ".0" if entry else ""
    assert str(refused.value) == f"{where}.{old}: was renamed; use {where}.{new}"


def test_an_old_key_in_the_wrong_section_is_understood() -> None:
    with pytest.raises(ConfigError, match="clip: unknown key; did you mean train.clip_factor"):
        validate({"name": "n", "data": {"path": "a"}, "clip": 3})


def test_an_old_value_is_an_error_that_names_the_new_one() -> None:
    with pytest.raises(ConfigError, match="data.channels=grey: did you mean 'gray'"):
        validate({"name": "n", "data": {"path": "a", "channels": "grey"}})
    for old, new in (("grey", "gray"), ("colour", "color")):
        with pytest.raises(ConfigError, match=f"style={old}: did you mean '{new}'"):
            parse_options(find_entry(RECIPES, "digits").Options, [f"style={old}"])


def test_a_run_of_before_is_built_as_it_was() -> None:
    config = config_of(OLD_CONFIG, device="cpu")
    assert not any(config.tasks[task].use_predictions for task in ("segmentation", "detection"))
    assert not config.generator.self_attention and not config.discriminator.self_attention
    assert config.discriminator.downsampling == "box"
    assert legacy.upgrade({"tasks": {"segmentation": {"use_predictions": True}}}) == {
        "tasks": {"segmentation": {"use_predictions": True}}
    }


def test_a_stored_configuration_is_read_with_every_value_that_it_had() -> None:
    config = config_of(OLD_CONFIG, device="cpu")
    kept = {**yaml.safe_load(OLD_CONFIG), "device": "cpu", "precision": "fp32"}
    assert downgraded(config.model_dump(mode="json")) == kept
    assert (config.data.channels, config.data.max_boxes, config.train.ema_half_life) == ("gray", 4, 4000)
    assert config.conditions["layout"].probability == 0.15


def test_what_is_of_today_stays_as_it_is() -> None:
    values = config_of(OLD_CONFIG).model_dump(mode="json")
    assert legacy.upgrade(values) == values


def test_a_mixture_keeps_its_splits() -> None:
    old = {"data": {"mixture": [{"path": "a", "weight": 2, "train": "x", "test": None}], "train": "y"}}
    new = {
        "data": {"mixture": [{"path": "a", "weight": 2, "train_split": "x", "test_split": None}], "train_split": "y"}
    }
    assert legacy.upgrade(old) == new


def test_the_facts_of_an_order_are_found_under_their_new_keys() -> None:
    expected = {**OLD_ORDER, "data.max_samples": None, "data.label_oversampling": None}
    assert legacy.upgrade_facts(OLD_ORDER) == {
        key: value for key, value in expected.items() if key not in ("data.limit", "data.labelled_share")
    }


@pytest.mark.parametrize(("style", "before"), [("gray", "grey"), ("color", "colour"), ("inverted", "inverted")])
def test_a_data_set_made_again_has_the_fingerprint_that_it_had(style: str, before: str, tmp_path: Path) -> None:
    make("digits", tmp_path / "new", train=4, test=2, style=style)
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    card = json.loads((tmp_path / "old/dataset.json").read_text())
    card["made_by"]["options"]["style"] = before
    (tmp_path / "old/dataset.json").write_text(json.dumps(card))
    new, old = (open_index(tmp_path / name, "train") for name in ("new", "old"))
    assert new.fingerprint == old.fingerprint


def as_before(folder: Path) -> None:
    """Rewrite a run's folder as an older version left it: configurations, states of checkpoints and journal."""
    file = folder / "config.yaml"
    text = yaml.safe_dump(downgraded(yaml.safe_load(file.read_text())), sort_keys=False)
    file.write_text(text)
    found = checkpoint.verify(max((folder / "checkpoints").glob("[0-9]*")))
    tensors = {path.stem: found.tensors(path.stem) for path in found.folder.glob("*.safetensors")}
    named = {old_name(key): value for key, value in found.state["order"].items()}
    order = {key: value for key, value in named.items() if key in OLD_ORDER}
    assert order.keys() == OLD_ORDER.keys()
    shutil.rmtree(folder / "checkpoints")
    state = {**found.state, "order": order}
    checkpoint.save(folder / "checkpoints", found.images, tensors, state, text, keep=Retention(3))
    rows = [json.loads(line) for line in (folder / JOURNAL_FILE).read_text().splitlines()]
    for row in rows:
        if row.get("start"):
            row["start"]["config"] = text
    (folder / JOURNAL_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_of_before_is_inspected_reported_and_resumed(tmp_path: Path) -> None:
    make("shapes", tmp_path / "data", resolution=16, train=60, test=20)
    changes = {"data": {"path": str(tmp_path / "data"), "max_samples": 48}, "evaluate": {"every": 10**9}}
    # it was trained on the whole training split
    before = {**changes, "data": {**changes["data"], "val_split": "test"}}
    config = toy.small_run(tmp_path, "old", **before, train={"images": 160})
    launch(config, watch=lambda *_: None, say=print)
    as_before(config.folder)
    assert "ema_half_life" not in (config.folder / "config.yaml").read_text()
    assert describe(config.folder)["images"] == 160
    model, images = load_run(config.folder, "cpu")
    assert (images, model.config.train.ema_half_life, model.config.data.max_samples) == (160, 40, 48)
    assert downgraded(read_record(config.folder).config) == downgraded(config.model_dump(mode="json"))
    assert write_report(config.folder, None, tmp_path / "report.html").is_file()

    again = toy.small_run(tmp_path, "old", **changes, train={"images": 320})
    said: list[str] = []
    outcome = launch(again, watch=lambda *_: None, say=said.append, require_checkpoint=True)
    assert (outcome.status, outcome.images) == ("finished", 320)
    assert any("read the test split, as before" in line for line in said)
    newest = checkpoint.verify(max((config.folder / "checkpoints").glob("[0-9]*")))
    assert newest.state["order"][VALIDATION_FACT] is None


def test_the_best_checkpoint_of_a_run_of_before_is_found_by_its_old_name() -> None:
    values = yaml.safe_load(OLD_CONFIG) | {"checkpoint": {"best": {"metric": "test/mask_miou"}}}
    criterion = config_of(yaml.safe_dump(values)).checkpoint.retention.best
    assert criterion is not None and criterion.metric == "val/mask_miou"
    assert criterion.select({1: {"test/mask_miou": 0.5}, 2: {"val/mask_miou": 0.4}, 3: {}}) == 1


def test_a_test_metric_cannot_choose_the_best_checkpoint() -> None:
    values = {"name": "n", "data": {"path": "a"}, "checkpoint": {"best": {"metric": "test/mask_miou"}}}
    with pytest.raises(ConfigError, match="checkpoint.best.metric=test/mask_miou: .* use val/mask_miou, which"):
        validate(values)
