"""Class numbers, given or not, as vectors of the shared space."""

import torch

from mtgen.conditions.encoder import ConditionEncoder


def test_equal_classes_give_equal_vectors_and_others_different_ones() -> None:
    encoder = ConditionEncoder(3, 8)
    pooled = encoder(torch.tensor([0, 1, 2, 1]), torch.ones(4, dtype=torch.bool)).pooled
    assert pooled.shape == (4, 8)
    assert torch.equal(pooled[1], pooled[3])
    assert len(torch.unique(pooled, dim=0)) == 3


def test_a_class_that_is_not_given_is_one_vector_of_its_own_whatever_its_number() -> None:
    encoder = ConditionEncoder(3, 8)
    given = torch.tensor([False, False, True, True, True])
    pooled = encoder(torch.tensor([0, 2, 0, 1, 2]), given).pooled
    assert torch.equal(pooled[0], pooled[1])
    assert not any(torch.equal(pooled[0], row) for row in pooled[2:])


def test_a_data_set_without_classes_has_the_condition_that_none_is_given() -> None:
    pooled = ConditionEncoder(0, 8)(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool)).pooled
    assert len(torch.unique(pooled, dim=0)) == 1


def test_only_the_vectors_that_are_asked_for_are_trained() -> None:
    encoder = ConditionEncoder(3, 4)
    encoder(torch.tensor([1, 2]), torch.tensor([True, False])).pooled.sum().backward()
    (gradient,) = [p.grad for p in encoder.parameters()]
    assert gradient is not None
    assert gradient.sum(dim=1).tolist() == [0, 4, 0, 4]
