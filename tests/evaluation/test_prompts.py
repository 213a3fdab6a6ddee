"""The prompts of an evaluation: the classes, or the labels of test samples for a run that is conditioned on labels."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers.made_models import made

from mtgen.evaluation.splits import evaluation_prompts
from mtgen.evaluation.streams import GeneratedPart, RequestedOutputs, Stage, StreamProducer
from mtgen.models.model import Model
from mtgen.schema import Batch

LABELS = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]).bool()


@pytest.fixture
def test(make_batch: Callable[..., Batch]) -> list[Batch]:
    """A test split of five scenes, the last of which has no labels."""
    batch = make_batch(torch.zeros(5, 3, 8, 8))
    batch.labels, batch.present["tags"] = LABELS, torch.arange(5) < 4
    return [batch.rows(torch.arange(3)), batch.rows(torch.arange(3, 5))]


def scenes(*conditions: str) -> Model:
    return made(tasks=("generation", "tagging"), conditions=conditions)


def generated(model: Model, test: list[Batch], rank: int = 0, world: int = 1) -> list[GeneratedPart]:
    producer = StreamProducer(
        model,
        test,
        None,
        samples=13,
        seed=0,
        prompts=evaluation_prompts(model, test),
        batch_size=4,
        rank=rank,
        world=world,
    )
    return [part for part in producer.parts(Stage.GENERATED, RequestedOutputs()) if isinstance(part, GeneratedPart)]


@pytest.mark.parametrize("conditions", [("class", "labels"), ("caption",)])
def test_a_run_that_is_not_conditioned_on_labels_alone_generates_every_class_in_turn(
    conditions: tuple[str, ...], test: list[Batch]
) -> None:
    model = scenes(*conditions)
    assert evaluation_prompts(model, test) is None
    assert torch.cat([part.labels for part in generated(model, test)]).tolist() == [number % 4 for number in range(13)]


def test_scenes_are_generated_for_the_label_combinations_of_test_samples(test: list[Batch]) -> None:
    model = scenes("labels")
    prompt = evaluation_prompts(model, test)
    assert prompt is not None and torch.equal(prompt.values["labels"].bool(), LABELS)
    assert prompt.given["labels"].tolist() == [True, True, True, True, False]
    images = torch.cat([part.canvas.image for part in generated(model, test)])
    others = [replace(batch, labels=~batch.labels) for batch in test if batch.labels is not None]
    same = (images == torch.cat([part.canvas.image for part in generated(model, others)])).flatten(1).all(1)
    assert len(images) == 13 and same.nonzero().flatten().tolist() == [
        4,
        9,
    ]  # the sample without labels asks for nothing


def test_generated_images_do_not_depend_on_the_number_of_workers(test: list[Batch]) -> None:
    model = scenes("labels")
    alone, shared = generated(model, test), [generated(model, test, rank, 2) for rank in range(2)]
    for number, part in enumerate(alone):
        assert torch.equal(part.canvas.image, shared[number % 2][number // 2].canvas.image)
