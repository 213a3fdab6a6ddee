"""All tasks and conditions: two workers with unequal numbers of labels equal a plain loop over the whole batch."""

from pathlib import Path

import pytest
import torch
from helpers import toy
from torch import Tensor

STEPS = 3
# Adam makes a whole step even if the gradient is only a rounding error.
SLOW = {"discriminator__learning_rate": 1e-4, "generator__learning_rate": 1e-4}
CASES = [
    {"zero_stage": stage, "balancing__weighting": gate, "balancing__canvas": gate}
    for stage, gate in ((0, "none"), (2, "equal"), (1, "upgrad"))
]


def trained(cases: list[dict]) -> list[dict[str, Tensor]]:
    """Parameters after some steps of DeepSpeed engines, for each case."""
    ends = []
    for case in cases:
        deep = toy.Deep(toy.everything(workers=torch.distributed.get_world_size(), **SLOW, **case))
        for k in range(STEPS):
            deep.step(k)
        ends.append(toy.parameters(deep.networks))
    return ends


def test_the_workers_have_unequal_numbers_of_labels() -> None:
    for k in range(STEPS):
        whole = toy.batch(16 * k, 16)
        assert any(has[:8].sum() != has[8:].sum() for has in whole.present.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_engines_equal_a_plain_loop_over_the_whole_batch(tmp_path: Path, workers: int) -> None:
    results = toy.spawn(workers, trained, tmp_path, CASES)
    start = toy.parameters(toy.steps(toy.everything())[0])
    for number, case in enumerate(CASES):
        whole = toy.plain(toy.everything(**SLOW, **case), STEPS)
        for worker in results:
            found = worker[number]
            assert found.keys() == whole.keys()
            away = {name: float((found[name] - value).abs().max()) for name, value in whole.items()}
            assert max(away.values()) <= (0.0 if workers == 1 else 1e-5), (case, max(away, key=lambda name: away[name]))
            assert any(not torch.equal(value, start[name]) for name, value in found.items())
