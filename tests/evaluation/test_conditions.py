"""Metrics of conditions, embeddings and translations, and the reference models that they use."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtgen.evaluation.base import MetricContext, Skipped
from mtgen.evaluation.evaluate import evaluate
from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.metrics.retrieval import nearest
from mtgen.evaluation.reference import classifier, segmenter
from mtgen.evaluation.reference.models import ReferenceModels
from mtgen.evaluation.reference.segmenter import Segmenter
from mtgen.evaluation.reference.training import TrainingSpec
from mtgen.schema import Batch, Canvas, DatasetCard, Prediction, Prompt

MakeBatch = Callable[..., Batch]
MakeCard = Callable[..., DatasetCard]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "CLASSIFIER_TRAIN_IMAGES", 40 * classifier.CLASSIFIER_BATCH_SIZE)
    monkeypatch.setattr(segmenter, "SEGMENTER_TRAIN_IMAGES", 60 * segmenter.SEGMENTER_BATCH_SIZE)


def masks(label: Tensor) -> Tensor:
    """`[B,16,16]`: the top, the middle or the bottom is of mask class 1, the rest of 0."""
    rows = torch.arange(16)
    inside = (rows >= 5 * label[:, None]) & (rows < 5 * label[:, None] + 5)
    return inside[:, :, None].expand(-1, -1, 16).long()


def stripes(label: Tensor, bright: float = 0.7) -> Tensor:
    """16x16 images that are bright where their mask is."""
    return -0.8 + (bright + 0.8) * masks(label)[:, None].float()


def real(make_batch: MakeBatch, n: int = 90, image: Callable[[Tensor], Tensor] = stripes) -> Batch:
    label = torch.arange(n) % 3
    return make_batch(image(label), label, masks(label))


@pytest.fixture
def card(make_card: MakeCard) -> DatasetCard:
    return make_card(3, 2)


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 0.0)])
def test_conditioned_images_are_classified_by_a_model_trained_on_real_images_alone(
    assemble: Any, card: DatasetCard, make_batch: MakeBatch, shift: int, expected: float
) -> None:
    model = assemble(card, lambda labels, latent: Canvas(stripes((labels + shift) % 3)), conditions=["class", "sound"])
    names = ["condition/class", "condition/sound"]
    batch = real(make_batch)
    report = evaluate(model, [batch], [batch], samples=90, seed=0, metrics=names)
    assert report == dict.fromkeys(names, expected)


def test_only_samples_that_have_the_condition_are_generated_for(
    assemble: Any, card: DatasetCard, make_batch: MakeBatch
) -> None:
    drawn = []

    def draw(labels: Tensor, latent: Tensor) -> Canvas:
        drawn.extend(labels.tolist())
        return Canvas(stripes(labels))

    label = torch.tensor([0, -1, 2, -1])
    batch = make_batch(stripes(label.clamp(min=0)), label)
    evaluate(assemble(card, draw), [batch], [real(make_batch)], samples=90, seed=0, metrics=["condition/class"])
    assert drawn == [0, 2]


def test_a_condition_that_the_run_has_not_is_named(assemble: Any, card: DatasetCard, make_batch: MakeBatch) -> None:
    report = evaluate(assemble(card, None), [real(make_batch)], None, samples=90, seed=0, metrics=["condition/caption"])
    assert report.skipped == {"condition/caption": "the run has no condition 'caption'"}


def test_without_training_images_there_is_no_reference_model(
    assemble: Any, card: DatasetCard, make_batch: MakeBatch
) -> None:
    model = assemble(card, lambda labels, latent: Canvas(stripes(labels)))
    report = evaluate(model, [real(make_batch)], None, samples=90, seed=0, metrics=["condition/class"])
    assert "no real training image" in report.skipped["condition/class"]


def test_condition_masks_and_generated_masks_are_compared_with_the_reference_segmenter(
    assemble: Any, card: DatasetCard, make_batch: MakeBatch
) -> None:
    def draw(labels: Tensor, latent: Tensor) -> Canvas:
        return Canvas(stripes(labels), F.one_hot(masks(labels), 2).movedim(-1, 1).float())

    model, batch = assemble(card, draw, conditions=["class", "layout"]), real(make_batch)
    report = evaluate(
        model, [batch], [batch], samples=90, seed=0, metrics=["condition/layout_iou", "generated/mask_iou"]
    )
    assert report["condition/layout_iou"] > 0.95 and report["generated/mask_iou"] > 0.95


def test_reference_models_are_trained_once(card: DatasetCard, make_batch: MakeBatch) -> None:
    stages: list[int] = []
    reference_models = ReferenceModels(
        MetricContext(card, samples=90, progress=lambda stage, done, total: stages.append(done))
    )
    reference_models.update_train(real(make_batch))
    for _ in range(2):
        reference_models.predict_class(stripes(torch.arange(3)))
    assert len(stages) == 40


def test_a_segmenter_is_the_same_for_the_same_seed_and_leaves_global_random_numbers_alone() -> None:
    label = torch.arange(30) % 3
    state, image = torch.get_rng_state(), ((stripes(label) + 1) * 127.5).to(torch.uint8)
    first, second = (
        Segmenter(image, masks(label).to(torch.uint8), 2, TrainingSpec(seed=1)).network.state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_pixels_of_unknown_class_teach_a_segmenter_nothing() -> None:
    label = torch.arange(30) % 3
    image, mask = ((stripes(label) + 1) * 127.5).to(torch.uint8), masks(label).to(torch.uint8)
    mask[:, :, 8:] = 255
    assert set(Segmenter(image, mask, 2, TrainingSpec()).predict(image).unique().tolist()) == {0, 1}


def test_retrieval_counts_what_is_nearest(assemble: Any, card: DatasetCard, make_batch: MakeBatch) -> None:
    label = torch.arange(8) % 3
    image = F.one_hot(torch.cat([label[:6], (label[6:] + 1) % 3]), 3).float()  # two of the eight lie at another class
    model = assemble(card, None, lambda _: Prediction(embedding=image), conditions=["class", "sound"])
    batch = make_batch(torch.zeros(8, 1, 4, 4), label)
    report = evaluate(
        model, [batch], None, samples=9, seed=0, metrics=["retrieval/image_to_class", "retrieval/sound_to_class"]
    )
    assert report == {"retrieval/image_to_class": 0.75, "retrieval/sound_to_class": 1.0}


def test_another_image_with_the_same_caption_is_right_too(card: DatasetCard, make_batch: MakeBatch) -> None:
    metric = METRICS["retrieval/caption_to_image"](MetricContext(card, samples=9, conditions=("caption",)))
    batch = make_batch(torch.zeros(4, 1, 4, 4))
    batch.caption = torch.tensor([[1, 2], [1, 2], [3, 0], [4, 0]])
    image = torch.eye(4)[
        [1, 0, 2, 2]
    ]  # each of the first two lies at the other's caption, which is the same; the last at the third's
    metric.update_embeddings(batch, image, {"caption": (torch.eye(4), torch.ones(4, dtype=torch.bool))})
    assert metric.compute() == {"retrieval/caption_to_image": 0.75}


def test_nearest_is_brute_force() -> None:
    g = torch.Generator().manual_seed(0)
    query, among = torch.randn(50, 6, generator=g), torch.randn(30, 6, generator=g)
    cosine = F.cosine_similarity(query[:, None], among[None], dim=2)
    assert torch.equal(nearest(query, among, chunk=7), cosine.argmax(1))


def test_without_an_aligned_space_retrieval_is_skipped(assemble: Any, card: DatasetCard, make_batch: MakeBatch) -> None:
    report = evaluate(
        assemble(card, None), [real(make_batch)], None, samples=9, seed=0, metrics=["retrieval/image_to_class"]
    )
    assert "has no alignment" in report.skipped["retrieval/image_to_class"]


def dark(label: Tensor) -> Tensor:
    return -stripes(label)


def test_translated_images_are_classified_by_a_model_of_the_target_domain(
    assemble: Any, card: DatasetCard, make_batch: MakeBatch
) -> None:
    card = card.model_copy(update={"domains": ["bright", "dark"]})
    bright, negative = real(make_batch), real(make_batch, image=dark)
    for number, batch in enumerate((bright, negative)):
        batch.domain = torch.full((90,), number)
    asked: list[int] = []

    def turn(image: Tensor, prompt: Prompt) -> Canvas:
        asked.extend(prompt.values["domain"].tolist())
        return Canvas(-image)

    model = assemble(card, None, translates="domain", turn=turn)
    report = evaluate(
        model, [bright, negative], [bright, negative], samples=90, seed=0, metrics=["translation/class_kept"]
    )
    assert report == {"translation/class_kept": 1.0}
    assert asked == [1] * 90 + [0] * 90


def test_translation_between_classes_has_to_reach_the_class(
    assemble: Any, card: DatasetCard, make_batch: MakeBatch
) -> None:
    model = assemble(card, None, translates="class", turn=lambda image, prompt: Canvas(stripes(prompt.values["class"])))
    names = ["translation/class_reached", "translation/class_kept"]
    report = evaluate(model, [real(make_batch)], [real(make_batch)], samples=90, seed=0, metrics=names)
    assert report == {"translation/class_reached": 1.0}
    assert "not 'domain'" in report.skipped["translation/class_kept"]


@pytest.mark.parametrize("name", ["condition/class", "retrieval/image_to_class", "translation/class_kept"])
def test_they_need_classes(make_card: MakeCard, name: str) -> None:
    with pytest.raises(Skipped, match="names no classes"):
        METRICS[name](MetricContext(make_card(0), samples=9, conditions=("class",), translates="domain"))


@pytest.mark.parametrize(("method", "reason"), [("predict_class", "no classes"), ("predict_mask", "no mask classes")])
def test_without_names_of_classes_no_reference_model_is_trained(
    make_card: Callable[..., DatasetCard], make_batch: Callable[..., Batch], method: str, reason: str
) -> None:
    reference_models = ReferenceModels(MetricContext(make_card(classes=0, mask_classes=0), samples=10))
    reference_models.update_train(make_batch(torch.zeros(4, 3, 8, 8)))
    with pytest.raises(Skipped, match=reason):
        getattr(reference_models, method)(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["generated/cas", "generated/diversity", "generated/class_agreement"])
def test_metrics_of_conditioned_classes_are_skipped_where_there_are_none(
    name: str, make_card: Callable[..., DatasetCard]
) -> None:
    with pytest.raises(Skipped, match="the run has no condition 'class'"):
        METRICS[name](MetricContext(make_card(), samples=9, conditions=("labels",)))
