"""The gates of a run: their configuration, their state, and gradient accumulation."""

from pathlib import Path

import pytest
import torch
from helpers import toy

from mtgen.balancing.factory import build_gates, gates_state_dict, load_gates_state_dict
from mtgen.errors import ConfigError
from mtgen.training.step import frozen

TASKS = ["generation", "classification", "segmentation"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"balancing__canvas": "famo"}, "balancing.canvas=famo: weights by the tasks' losses"),
        ({"balancing__weighting": "no good"}, "balancing.weighting=no good: unknown weighting; possible: none, "),
        ({"balancing__preference": {"generation": 0}}, "a preference has to be above 0"),
        ({"balancing__groups": {"a": ["clasification"]}}, "did you mean 'classification'"),
        ({"balancing__groups": {"a": ["generation"], "b": ["generation"]}}, "at most one group"),
        ({"balancing__parameters": {"cagrad": {"d": 1}}}, "cagrad has no parameter 'd'; possible: c"),
    ],
)
def test_an_invalid_setting_is_an_error_with_its_key(changes: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError, match=message.replace("(", "\\(")):
        toy.config(**changes)


def test_each_gate_is_configured_separately() -> None:
    settings = toy.config(
        balancing={"weighting": "upgrad", "generator": "cagrad", "canvas": "none", "parameters": {"cagrad": {"c": 0.2}}}
    )
    gates = build_gates(settings, TASKS, [])
    assert [type(gate.weighting).__name__ for gate in gates.values()] == ["UPGrad", "CAGrad", "NoneType"]
    assert gates["generator"].weighting.c == 0.2  # type: ignore[union-attr]


def test_a_users_weighting_gets_the_parameters_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    body = [
        "def __init__(self, power=1.0):",
        "    self.power = power",
        "def __call__(self, gramian):",
        "    return gramian",
    ]
    Path("own.py").write_text("\n    ".join(["class Mine:", *body]) + "\n")
    settings = toy.config(balancing={"weighting": "own.Mine", "parameters": {"own.Mine": {"power": 3.0}}})
    assert build_gates(settings, TASKS, [])["discriminator"].weighting.power == 3.0  # type: ignore[union-attr]


def test_a_missing_weighting_is_an_error_when_training_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("x = 1\n")
    settings = toy.config(balancing__weighting="own.Mine")  # reading the configuration runs nothing
    with pytest.raises(ConfigError, match=r"balancing\.discriminator=.*own\.py:Mine: cannot be loaded"):
        build_gates(settings, TASKS, [])


def test_state_is_restored_into_unchanged_gates_and_others_start_from_scratch() -> None:
    settings = toy.config(balancing={"weighting": "gradvac", "ema_half_life": 100})
    gates = build_gates(settings, TASKS, [])
    gates["discriminator"].arbitrate(torch.eye(3) * 2)
    tensors, about = gates_state_dict(gates)
    again = build_gates(settings, TASKS, [])
    assert load_gates_state_dict(again, tensors, about) == []
    assert torch.equal(again["discriminator"].state()["gramian"], gates["discriminator"].state()["gramian"])
    other = build_gates(
        settings.model_copy(update={"balancing": settings.balancing.model_copy(update={"canvas": "mgda"})}), TASKS, []
    )
    assert load_gates_state_dict(other, tensors, about) == ["canvas"]


@pytest.mark.parametrize("source", ["features", "pooled", "layer"])
@pytest.mark.parametrize("gate", ["nash_mtl", "famo"])
def test_steps_train_with_every_gramian_source_and_each_micro_batch_is_arbitrated(source: str, gate: str) -> None:
    changes = {
        "weighting": gate,
        "gramian_source": source,
        "ema_half_life": 100,
        "groups": {"labels": ["classification", "segmentation"]},
    }
    settings = toy.config(balancing=changes, train__accumulation=2)
    networks, d_step, g_step = toy.steps(settings)
    whole = toy.batch(0, 16)
    for step, other, own in ((d_step, networks.generator, networks.side), (g_step, networks.side, networks.generator)):
        with frozen(other):
            for begin in (0, 8):
                loss, _ = step(whole.rows(slice(begin, begin + 8)), (other,))
                (loss / 2).backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in own.parameters() if p.grad is not None)
        assert step.gate.memory["images"] == 16
        assert {"norm_generation", "weight_labels"} <= set(step.gate.report())
