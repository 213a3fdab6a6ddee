"""Training on pretrained features: where gradients go, the penalty's noise, engines, and a trunk that only judges."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import toy
from helpers.backbones import settings
from torch import Tensor

from mtgen.config import Config
from mtgen.errors import ConfigError
from mtgen.models.ema import EMA
from mtgen.models.model import Networks
from mtgen.preflight.cost import cost

JUDGED_BY_FEATURES = {"discriminator__trunk": "separate", "discriminator__backbone__judge": True}
TASKS = ("generation", "classification", "segmentation", "reconstruction")


def configured(tmp_path: Path, backbone: dict[str, Any] | None = None, **changes: Any) -> Config:
    return toy.config(discriminator__backbone=settings(tmp_path, **(backbone or {})), **changes)


def backward(config: Config) -> tuple[Networks, dict[str, Tensor]]:
    """Both steps' gradients of one batch; returns the losses by name."""
    networks, d_step, g_step = toy.steps(config)
    logs = {}
    for step, other in ((d_step, networks.generator), (g_step, networks.side)):
        with toy.frozen(other):
            loss, log = step(toy.batch(0, 16), (other,))
        loss.backward()
        assert all(value.isfinite().all() for value in log.values())
        logs |= log
    return networks, logs


def backbone_of(networks: Networks) -> Any:
    return networks.side.discriminator.backbone


def test_gradients_reach_the_generator_through_a_frozen_network_and_never_its_parameters(tmp_path: Path) -> None:
    networks, _ = backward(configured(tmp_path))
    backbone = backbone_of(networks)
    (network,) = backbone._frozen
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not list(backbone.parameters())  # so nothing of it is averaged or checkpointed
    image = torch.zeros(2, 1, 8, 8, requires_grad=True)
    backbone(image)[0].sum().backward()
    assert image.grad is not None and bool(image.grad.any())
    readers = networks.side.discriminator.see_pretrained
    assert readers is not None and all(p.grad is not None and bool(p.grad.any()) for p in readers.parameters())


def test_a_fine_tuned_network_is_trained_averaged_and_has_its_own_rate(tmp_path: Path) -> None:
    networks, _ = backward(configured(tmp_path, {"learning_rate_factor": 0.1}))
    own = list(backbone_of(networks).parameters())
    assert len(own) == 6 and all(p.grad is not None and bool(p.grad.any()) for p in own)
    groups = networks.side.parameter_groups(0.1)
    assert [factor for _, factor in groups] == [1.0, 0.1] and len(groups[1][0]) == 6
    average = EMA([("side", networks.side)], 0.0)
    assert "side.discriminator.backbone.network.first.weight" in average.names


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_penalty_has_noise_on_the_features_and_does_not_go_through_the_network(
    tmp_path: Path, noise: float
) -> None:
    """With input layers of pixels at zero, pixels reach the logit through the network alone."""
    config = configured(tmp_path, {"penalty_noise": noise}, tasks__generation__penalty_every=1)
    networks, d_step, _ = toy.steps(config)
    trunk = networks.side.discriminator
    for layer in (trunk.see_image, trunk.see_mask):
        torch.nn.init.zeros_(layer.weight)
    _, log = d_step(toy.batch(0, 16), (networks.generator,))
    assert (log["generation_penalty"] > 0) == (noise > 0)


@pytest.mark.parametrize("changes", [
    {"tasks__generation__penalty": "exact"},
    {"precision": "bf16"},
    {"discriminator__trunk": "separate"},
    {"discriminator__trunk": "separate", "tasks__generation__penalty": "exact"},
    JUDGED_BY_FEATURES,
    JUDGED_BY_FEATURES | {"tasks__generation__penalty": "exact"},
    {"resolution": [8, 16]},
    {"tasks": {"classification": {}, "segmentation": {}}},
])  # fmt: skip
def test_it_works_with_every_kind_of_step(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = configured(tmp_path, **changes)
    if config.size == (8, 16):
        networks, d_step, _ = toy.steps(config)
        assert d_step(toy.batch(0, 16, (8, 16)), (networks.generator,))[0].isfinite()
    elif config.generates:
        backward(config)
    else:
        networks, d_step, _ = toy.steps(config)
        d_step(toy.batch(0, 16), (networks.generator,))[0].backward()


def test_a_separate_trunk_leaves_prediction_alone() -> None:
    """No gradient of the game reaches the trunk that predicts, and none of the predictions the one that judges."""
    networks, d_step, g_step = toy.steps(toy.config(discriminator__trunk="separate"))
    discriminator = networks.side.discriminator
    assert discriminator.game is not None and discriminator.see_mask is None and discriminator.game.see_mask is not None
    for weights, silent in (({"generation": 0.0}, discriminator.game), (dict.fromkeys(TASKS[1:], 0.0), discriminator)):
        for task in d_step.tasks:
            task.settings = task.settings.model_copy(update={"weight": weights.get(task.name, 1.0)})
        networks.side.zero_grad()
        d_step(toy.batch(0, 16), (networks.generator,))[0].backward()
        gradients = [p.grad for p in silent.descent.parameters() if p.grad is not None]
        assert not any(bool(gradient.any()) for gradient in gradients)
    with toy.frozen(networks.side):
        g_step(toy.batch(0, 16), (networks.side,))[0].backward()
    assert all(bool(p.grad.any()) for p in networks.generator.draw.parameters())


def test_without_both_the_networks_have_the_parameters_that_they_had() -> None:
    names = {n for n, _ in toy.steps(toy.config())[0].side.named_parameters()}
    assert not any("pretrained" in n or "backbone" in n or ".game." in n for n in names)
    assert "discriminator.see_image.weight" in names and "discriminator.descent.levels.0.0.first.weight" in names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks__generation": {"mismatched": 0.5}}, r"tasks.generation.mismatched: needs the trunk that also judges"),
        ({"tasks__classification": {"generated": 0.5}}, r"tasks.classification.generated: needs the trunk that also"),
        ({"tasks": {"classification": {}}}, r"discriminator.trunk=separate: nothing is judged without the generation"),
    ],
)
def test_what_a_separate_trunk_cannot_be_combined_with_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        toy.config(discriminator__trunk="separate", **changes)


def test_one_trunk_cannot_judge_without_what_it_reads(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"discriminator.backbone.judge=false: one trunk predicts and judges; add"):
        configured(tmp_path, {"judge": False})
    for judge, reads in ((None, False), (False, False), (True, True)):
        networks, _ = backward(configured(tmp_path, {"judge": judge}, discriminator__trunk="separate"))
        discriminator = networks.side.discriminator
        assert discriminator.see_pretrained is not None
        assert (discriminator.judge.see_pretrained is not None) == reads


def test_translation_and_a_backbone_exclude_one_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks.translation: its penalty would go through discriminator.backbone"):
        toy.everything(discriminator__backbone=settings(tmp_path))


def test_costs_are_counted_with_it(tmp_path: Path) -> None:
    plain, frozen, tuned = (
        cost(config, toy.CARD, rows=16)
        for config in (toy.config(), configured(tmp_path), configured(tmp_path, {"learning_rate_factor": 0.1}))
    )
    assert plain.step < frozen.step < tuned.step
    assert plain.total < frozen.total < tuned.total


def trained(cases: list[dict[str, Any]], number: int) -> list[dict[str, Tensor]]:
    results = []
    for case in cases:
        deep = toy.Deep(toy.config(**case))
        for k in range(number):
            deep.step(k)
        results.append(toy.parameters(deep.networks))
    return results


@pytest.mark.parametrize(("workers", "kinds"), [(1, [(0, 0.0), (0, 0.1), (2, 0.1)]), (2, [(1, 0.1)])])
def test_engines_train_as_a_plain_loop_does(tmp_path: Path, workers: int, kinds: list[tuple[int, float]]) -> None:
    """Frozen, and fine-tuned at a tenth of the discriminator's rate; kinds are a ZeRO stage and that fraction."""
    common = {"workers": workers, "train__clip_factor": 0.0, "discriminator__learning_rate": 3e-4}
    cases: list[dict[str, Any]] = [
        {**common, "zero_stage": stage, "discriminator__backbone": settings(tmp_path, learning_rate_factor=rate)}
        for stage, rate in kinds
    ]
    results = toy.spawn(workers, trained, tmp_path, cases, 2)
    for number, case in enumerate(cases):
        expected = toy.plain(toy.config(**{**case, "workers": 1}), 2)
        for result in results:
            assert result[number].keys() == expected.keys()
            difference = max(float((result[number][n] - expected[n]).abs().max()) for n in expected)
            assert difference <= (0.0 if workers == 1 else 1e-5), case


def resumed(cases: list[dict[str, Any]], root: str) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Of each case: parameters after two steps, a checkpoint and two more, and after the latter from the checkpoint."""
    results = []
    for number, case in enumerate(cases):
        folder, deep = Path(root) / str(number), toy.Deep(toy.config(**case))
        for k in range(2):
            deep.step(k)
        deep.save(folder, 2)
        dist.barrier()
        again = toy.Deep(toy.config(**case))
        again.load(folder)
        for k in range(2, 4):
            deep.step(k)
            again.step(k)
        results.append((toy.parameters(deep.networks), toy.parameters(again.networks)))
    return results


@pytest.mark.parametrize("workers", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, workers: int) -> None:
    """Frozen, and fine-tuned under a ZeRO stage; the parameters of a frozen network are in no checkpoint."""
    common = {"workers": workers, "discriminator__trunk": "separate"}
    cases: list[dict[str, Any]] = [
        {**common, "zero_stage": stage, "discriminator__backbone": settings(tmp_path, learning_rate_factor=rate)}
        for stage, rate in ((1, 0.0), (2, 0.1))
    ]
    for result in toy.spawn(workers, resumed, tmp_path, cases, str(tmp_path)):
        for uninterrupted, after in result:
            assert uninterrupted.keys() == after.keys()
            assert all(torch.equal(uninterrupted[name], after[name]) for name in after)
