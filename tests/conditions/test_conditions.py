"""Classes, given or not, as vectors of the shared space."""

import torch

from mtgen.conditions.base import ConditionSizes
from mtgen.conditions.class_ import Class
from mtgen.conditions.encoder import ConditionEncoder
from mtgen.config import ConditionSettings
from mtgen.schema import Prompt


def of_classes(classes: int, size: int = 8) -> ConditionEncoder:
    sizes = ConditionSizes(classes=classes, mask_classes=0, domains=1, vocabulary=1, sound=(8, 8), size=size)
    return ConditionEncoder({"class": Class(ConditionSettings(), sizes)} if classes else {}, size)


def test_equal_classes_have_equal_vectors_and_different_ones_different_vectors() -> None:
    pooled = of_classes(3)(Prompt.of_classes(torch.tensor([0, 1, 2, 1]))).pooled
    assert pooled.shape == (4, 8)
    assert torch.equal(pooled[1], pooled[3])
    assert len(torch.unique(pooled, dim=0)) == 3


def test_a_class_that_is_not_given_has_one_vector_whatever_its_number() -> None:
    given = torch.tensor([False, False, True, True, True])
    pooled = of_classes(3)(Prompt(5, {"class": torch.tensor([0, 2, 0, 1, 2])}, {"class": given})).pooled
    assert torch.equal(pooled[0], pooled[1])
    assert not any(torch.equal(pooled[0], row) for row in pooled[2:])


def test_without_modalities_there_is_one_unconditional_vector() -> None:
    pooled = of_classes(0)(Prompt(3, {}, {})).pooled
    assert len(torch.unique(pooled, dim=0)) == 1


def test_only_the_vectors_of_given_classes_are_trained() -> None:
    encoder = of_classes(3, 4)
    pooled = encoder(Prompt.of_classes(torch.tensor([1, -1]))).pooled
    (pooled * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    table = encoder.modality("class").get_parameter("table.weight").grad
    assert table is not None
    assert [bool(row.any()) for row in table] == [False, True, False]
    assert encoder.nothing.grad is not None
    assert encoder.nothing.grad.tolist() == [1.0, 2.0, 3.0, 4.0]
