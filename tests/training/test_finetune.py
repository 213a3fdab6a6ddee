"""A run starts from another run's averaged parameters, and reports which ones it did not find."""

import json
from pathlib import Path
from typing import Any

import torch
from helpers import toy
from torch import Tensor

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.retention import Retention
from mtgen.config import Config
from mtgen.errors import CheckpointError
from mtgen.models.ema import EMA
from mtgen.models.model import Networks, build
from mtgen.training.consensus import Consensus
from mtgen.training.finetune import START_FILE, load_initial_weights


def averaged(settings: Config) -> dict[str, Tensor]:
    """Averaged parameters that differ from a fresh network's."""
    networks = build(settings, toy.CARD)
    state = EMA([("generator", networks.generator), ("side", networks.side)], 0.0).state()
    return {name: tensor + 0.5 for name, tensor in state.items()}


def old_run(folder: Path, **changes: Any) -> dict[str, Tensor]:
    settings = toy.config(**changes)
    tensors = averaged(settings)
    checkpoint.save(
        folder / "checkpoints",
        320,
        {"ema": tensors},
        {"card": toy.CARD.model_dump(mode="json")},
        settings.to_yaml(),
        keep=Retention(1),
    )
    return tensors


def started(values: dict[str, Any]) -> dict[str, Any]:
    """The parameters and the report of a start, in a process group as in training."""
    settings = toy.config(**values)
    networks: Networks = build(settings, toy.CARD)
    try:
        found = load_initial_weights(settings, networks, toy.CARD, Consensus(), True)
    except CheckpointError as error:
        return {"error": str(error)}
    return {
        "parameters": toy.parameters(networks),
        "lines": [] if found is None else found.lines(),
        "record": "" if found is None else found.write(settings.folder.parent).read_text(),
    }


def start(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    (tmp_path / "group").mkdir()
    (result,) = toy.spawn(1, started, tmp_path / "group", {"runs": str(tmp_path), "name": "new", **changes})
    return dict(result)


def test_a_new_run_starts_with_the_averaged_parameters_bit_for_bit(tmp_path: Path) -> None:
    expected = old_run(tmp_path / "old")
    found = start(tmp_path, train__init_from="old")
    assert found["parameters"].keys() == expected.keys()
    assert all(torch.equal(found["parameters"][name], tensor) for name, tensor in expected.items())
    assert len(found["lines"]) == 1 and "(320 images)" in found["lines"][0]


def test_new_parameters_are_initialized_as_in_any_new_run_and_named(tmp_path: Path) -> None:
    tasks = {"generation": {}, "classification": {}, "segmentation": {}, "reconstruction": {}, "alignment": {}}
    expected = old_run(tmp_path / "old")
    found = start(tmp_path, train__init_from=str(tmp_path / "old"), tasks=tasks)
    fresh = toy.parameters(build(toy.config(tasks=tasks), toy.CARD))
    new = sorted(found["parameters"].keys() - expected.keys())
    assert new and all(torch.equal(found["parameters"][name], fresh[name]) for name in new)
    assert all(name in found["lines"][1] for name in new) and "freshly initialized" in found["lines"][1]
    assert sorted(json.loads(found["record"])["fresh"]) == new and (tmp_path / START_FILE).is_file()


def test_unused_parameters_are_named(tmp_path: Path) -> None:
    old_run(tmp_path / "old")
    found = start(tmp_path, train__init_from="old", tasks={"generation": {}, "segmentation": {}, "reconstruction": {}})
    assert "not used" in found["lines"][1] and "side.discriminator.heads.classification" in found["lines"][1]


def test_parameters_of_another_shape_are_an_error_that_names_them_all(tmp_path: Path) -> None:
    old_run(tmp_path / "old")
    error = start(tmp_path, train__init_from="old", generator__latent=6)["error"]
    assert "generator.start.weight ([128, 12] there, [128, 14] here)" in error and "config.yaml" in error


def test_a_run_with_its_own_checkpoint_resumes_from_that(tmp_path: Path) -> None:
    old_run(tmp_path / "new")
    found = start(tmp_path, train__init_from="gone")  # it is not even looked for
    fresh = toy.parameters(build(toy.config(), toy.CARD))
    assert found["lines"] == [] and all(
        torch.equal(found["parameters"][name], tensor) for name, tensor in fresh.items()
    )


def test_without_a_run_to_start_from_parameters_are_fresh(tmp_path: Path) -> None:
    found = start(tmp_path)
    fresh = toy.parameters(build(toy.config(), toy.CARD))
    assert found["lines"] == [] and all(
        torch.equal(found["parameters"][name], tensor) for name, tensor in fresh.items()
    )


def test_an_unknown_run_is_an_error_with_the_nearest_right_one(tmp_path: Path) -> None:
    old_run(tmp_path / "digits")
    assert (
        "train.init_from=digit: not a run with a checkpoint; did you mean 'digits'"
        in start(tmp_path, train__init_from="digit")["error"]
    )


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    old_run(tmp_path / "old")
    next((tmp_path / "old").rglob("ema.safetensors")).write_bytes(b"")
    assert "all checkpoints are damaged" in start(tmp_path, train__init_from="old")["error"]
