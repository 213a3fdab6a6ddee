"""Timing both steps on random data."""

import pytest
import torch
from helpers import toy

from mtgen.config import Config
from mtgen.preflight.smoke_speed import Unavailable, speed_checks
from mtgen.preflight.step_speed import StepLoop, StepSpeed
from mtgen.preflight.synthetic_batch import synthetic_batch


@pytest.mark.parametrize("config", [toy.everything(), toy.config(precision="bf16"), toy.config(tasks={"tagging": {}})])
def test_a_loop_trains_what_the_configuration_trains(config: Config) -> None:
    loop = StepLoop(config, toy.CARD, torch.device("cpu"))
    before = [parameter.clone() for _, _, optimizer in loop._sides for parameter in optimizer.param_groups[0]["params"]]
    speed = loop.measure(1)
    after = [parameter for _, _, optimizer in loop._sides for parameter in optimizer.param_groups[0]["params"]]
    assert speed.images_per_second > 0 and 0 < speed.host <= 1 and speed.memory == 0
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert len(loop._sides) == (2 if config.generates else 1)


def test_a_speed_says_what_bounds_it() -> None:
    assert str(StepSpeed(1234.5, 0.951, 3 << 30)) == "1,234 images/s, 95% of the time launching kernels, 3.0 GiB"


def test_a_synthetic_batch_has_all_labels_in_the_range_of_the_data_set() -> None:
    config = toy.everything()
    batch = synthetic_batch(config, toy.CARD, 16, "cpu")
    assert batch.boxes is not None and batch.labels is not None
    assert 0 <= int(batch.label.min()) and int(batch.label.max()) < len(toy.CARD.classes)
    assert 0 <= int(batch.mask.min()) and int(batch.mask.max()) < len(toy.CARD.mask_classes)
    assert 0 <= batch.boxes[..., :4].min() and batch.boxes[..., :4].max() <= 1
    assert all(bool(there.all()) for there in batch.present.values())
    shapes = {name: (t.shape, t.dtype) for name, t in vars(batch).items() if isinstance(t, torch.Tensor)}
    meta = synthetic_batch(config, toy.CARD, 16, "meta")
    assert shapes == {name: (t.shape, t.dtype) for name, t in vars(meta).items() if isinstance(t, torch.Tensor)}


def test_a_cpu_times_a_small_step_and_says_what_needs_a_gpu() -> None:
    checks = dict(speed_checks(toy.config(), "cpu"))
    with pytest.raises(Unavailable, match="needs a GPU"):
        checks.pop("no host sync in a step")()
    (timed,) = checks.values()
    assert "images/s" in timed()


def test_a_gpu_is_timed_with_three_configurations_eager_compiled_and_graphed() -> None:
    names = [name for name, _ in speed_checks(toy.config(), "cuda")]
    assert names == ["no host sync in a step"] + [
        f"speed of {name}, {kind}"
        for kind in ("bf16", "fp16", "bf16, compiled", "bf16, graphs")
        for name in ("digits-32", "scenes-64", "coco-256")
    ]
