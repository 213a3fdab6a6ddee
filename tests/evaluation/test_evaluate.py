"""`evaluate`: what the metrics take in, and what they report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtgen.errors import ConfigError
from mtgen.evaluation.evaluate import QUICK_SAMPLES, evaluate
from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.reference import classifier, segmenter
from mtgen.evaluation.run import EvaluationOptions, evaluate_run
from mtgen.models.model import Model
from mtgen.schema import Batch, Canvas, DatasetCard, Prediction

MakeBatch = Callable[..., Batch]
MakeCard = Callable[..., DatasetCard]
QUICK = {
    "test/class_accuracy",
    "test/mask_miou",
    "test/reconstruction_psnr",
    "test/reconstruction_ssim",
    "generated/class_agreement",
    "generated/mask_agreement",
    "generated/diversity",
    "generated/diversity_worst",
    "generated/spread",
}
SLOW = {"generated/cas", "condition/class", "generated/mask_iou", "generated/synthetic_miou"}
COMPARED = {
    f"distribution/{name}_small_cnn"
    for name in ("kd", "precision", "recall", "density", "coverage", "memorisation", "memorised")
}
COMPARED.add("test/reconstruction_features_small_cnn")
NOT_GENERATED = {"generated/synthetic_ap50", "generated/drawn_ap50"}
NOT_PREDICTED = {"test/box_ap50", "test/tagging_map", "generated/box_agreement"}
NOT_CONDITIONED = {"condition/caption", "condition/sound", "condition/image", "condition/layout_iou"}
NOT_EMBEDDED = {"retrieval/sound_to_class", "retrieval/caption_to_image", "retrieval/image_to_class"}
NOT_TRANSLATED = {"translation/class_kept", "translation/class_reached"}


class Networks(nn.Module):
    """A generator and a predictor of one layer each, for three classes and three mask classes on 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.draw_layer = nn.Linear(4 + 3, 4 * 64)
            self.classes = nn.Linear(64, 3)
            self.masks = nn.Conv2d(1, 3, 3, padding=1)

    def draw(self, labels: Tensor, latent: Tensor) -> Canvas:
        asked = F.one_hot(labels.clamp(min=0), 3) * (labels >= 0)[:, None]
        drawn = self.draw_layer(torch.cat([latent, asked], 1)).view(-1, 4, 8, 8)
        return Canvas(drawn[:, :1].tanh(), drawn[:, 1:].softmax(1))

    def read(self, image: Tensor) -> Prediction:
        return Prediction(class_logits=self.classes(image.flatten(1)), mask_logits=self.masks(image))

    def rebuild(self, image: Tensor, labels: Tensor) -> Canvas:
        return Canvas(F.avg_pool2d(image, 3, 1, 1))


@pytest.fixture
def model(assemble: Any, make_card: MakeCard) -> Model:
    networks = Networks()
    return assemble(make_card(), networks.draw, networks.read, networks.rebuild)


@pytest.fixture
def real(make_batch: MakeBatch) -> Callable[..., list[Batch]]:
    def batches(size: int = 16, seed: int = 0) -> list[Batch]:
        g = torch.Generator().manual_seed(seed)
        image = torch.rand(96, 1, 8, 8, generator=g) * 2 - 1
        label, mask = torch.randint(-1, 3, (96,), generator=g), torch.randint(0, 3, (96, 8, 8), generator=g)
        has_mask = torch.rand(96, generator=g) < 0.7
        made = []
        for rows in torch.arange(96).split(size):
            made.append(make_batch(image[rows], label[rows], mask[rows], has_mask[rows]))
            made[-1].position = rows
        return made

    return batches


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "CLASSIFIER_TRAIN_IMAGES", 10 * classifier.CLASSIFIER_BATCH_SIZE)
    monkeypatch.setattr(segmenter, "SEGMENTER_TRAIN_IMAGES", 10 * segmenter.SEGMENTER_BATCH_SIZE)


def test_every_number_has_its_name(model: Model, real: Any, short: None) -> None:
    report = evaluate(model, real(), real(seed=1), samples=90, seed=0)
    assert set(report) == QUICK | SLOW | COMPARED
    assert set(report.skipped) == NOT_PREDICTED | NOT_GENERATED | NOT_CONDITIONED | NOT_EMBEDDED | NOT_TRANSLATED | {
        "distribution/fd"
    }
    assert report.skipped["distribution/fd"] == "at least 129 real training images are needed; there are 96"


def test_the_quick_subset_leaves_out_slow_metrics(model: Model, real: Any) -> None:
    report = evaluate(model, real(), real(seed=1), samples=90, seed=0, quick=True)
    assert set(report) == QUICK and set(report.skipped) == NOT_PREDICTED


def test_the_quick_subset_generates_fewer_samples(model: Model, real: Any) -> None:
    told: list[tuple[str, int, int | None]] = []
    evaluate(model, real(), None, samples=4000, seed=0, quick=True, progress=lambda *what: told.append(what))
    assert [told for told in told if told[0] == "generate"][-1] == ("generate", QUICK_SAMPLES, QUICK_SAMPLES)


def test_streaming_equals_one_batch_with_everything(model: Model, real: Any) -> None:
    whole = evaluate(model, real(96), real(96, 1), samples=90, seed=0, quick=True, batch_size=90)
    for size in (1, 7, 40):
        assert evaluate(
            model, real(size), real(size, 1), samples=90, seed=0, quick=True, batch_size=size
        ) == pytest.approx(whole)


def test_equal_seeds_give_equal_numbers(model: Model, real: Any, short: None) -> None:
    first, second = (evaluate(model, real(), real(seed=1), samples=90, seed=3) for _ in range(2))
    assert first == second


def test_another_seed_draws_other_samples(model: Model, real: Any) -> None:
    first, second = (evaluate(model, real(), None, samples=90, seed=seed, quick=True) for seed in (0, 1))
    assert first["generated/diversity"] != second["generated/diversity"]
    assert first["test/class_accuracy"] == second["test/class_accuracy"]


def test_the_scores_of_real_images_are_computed_on_request(model: Model, real: Any, short: None) -> None:
    report = evaluate(model, real(), real(seed=1), samples=60, seed=0, on_request=True)
    assert set(report) == QUICK | SLOW | COMPARED | {"real/cas", "real/miou"}
    assert set(report) <= {number.replace("NAME", "small_cnn") for name in METRICS for number in METRICS[name].numbers}


def test_the_scores_of_real_images_need_a_training_split(model: Model, real: Any, short: None) -> None:
    report = evaluate(model, real(), None, samples=60, seed=0, metrics=["real/cas"])
    assert not report and "there are 0" in report.skipped["real/cas"]


def test_metrics_that_the_model_cannot_provide_are_skipped_with_a_reason(
    assemble: Any, make_card: MakeCard, real: Any
) -> None:
    only_draws = assemble(make_card(), lambda labels, latent: Canvas(Networks().draw(labels, latent).image))
    report = evaluate(only_draws, real(), None, samples=90, seed=0, quick=True)
    assert set(report) == {"generated/diversity", "generated/diversity_worst", "generated/spread"}
    assert report.skipped == {
        "test/class_accuracy": "the run does not predict classes",
        "test/mask_miou": "the run does not predict masks",
        "test/reconstruction_psnr": "the run does not reconstruct images",
        "test/reconstruction_ssim": "the run does not reconstruct images",
        "generated/class_agreement": "the run does not predict classes",
        "generated/mask_agreement": "the run does not predict masks",
        "test/box_ap50": "the run does not predict boxes",
        "test/tagging_map": "the run does not predict the labels of images",
        "generated/box_agreement": "the run does not generate boxes",
    }


def test_metrics_that_the_data_set_cannot_provide_are_skipped_with_a_reason(
    assemble: Any, make_card: MakeCard, make_batch: MakeBatch
) -> None:
    networks = Networks()
    model = assemble(make_card(0, 0), networks.draw, networks.read, networks.rebuild)
    report = evaluate(model, [make_batch(torch.zeros(4, 1, 8, 8))], None, samples=20, seed=0)
    rebuilt = {"test/reconstruction_psnr", "test/reconstruction_ssim"}
    assert set(report) == rebuilt
    skipped = (
        QUICK - {*rebuilt, "generated/diversity_worst"}
        | SLOW
        | NOT_PREDICTED
        | NOT_GENERATED
        | NOT_CONDITIONED
        | NOT_EMBEDDED
        | NOT_TRANSLATED
    )
    compared = {f"distribution/{name}" for name in ("fd", "kd", "prdc", "memorisation")} | {
        "test/reconstruction_features"
    }
    assert set(report.skipped) == skipped | compared


def test_images_without_a_class_are_reconstructed_without_a_class(
    assemble: Any, make_card: MakeCard, make_batch: MakeBatch
) -> None:
    given: list[int] = []

    def rebuild(image: Tensor, labels: Tensor) -> Canvas:
        given.extend(labels.tolist())
        return Canvas(image)

    model = assemble(make_card(), Networks().draw, rebuild=rebuild)
    batch = make_batch(torch.zeros(3, 1, 8, 8), torch.tensor([2, -1, 0]))
    evaluate(model, [batch], None, samples=3, seed=0, metrics=["test/reconstruction_psnr"])
    assert given == [2, -1, 0]


def test_an_empty_test_split_gives_reasons_instead_of_numbers(model: Model) -> None:
    report = evaluate(
        model,
        [],
        None,
        samples=90,
        seed=0,
        metrics=["test/class_accuracy", "test/mask_miou", "test/reconstruction_psnr"],
    )
    assert not report and len(report.skipped) == 3


def test_single_metrics_can_be_chosen(model: Model, real: Any) -> None:
    assert set(evaluate(model, real(), None, samples=90, seed=0, metrics=["test/mask_miou"])) == {"test/mask_miou"}


def test_streams_that_no_metric_takes_in_are_not_produced(assemble: Any, make_card: MakeCard, real: Any) -> None:
    def refuse(labels: Tensor, latent: Tensor) -> Canvas:
        raise AssertionError("no metric takes in samples")

    model = assemble(make_card(), refuse, Networks().read)
    assert evaluate(model, real(), None, samples=90, seed=0, metrics=["test/class_accuracy"])


def test_an_unknown_metric_is_an_error_with_a_suggestion(model: Model, real: Any) -> None:
    with pytest.raises(ConfigError, match="test/mask_iou: unknown metric; did you mean 'test/mask_miou'"):
        evaluate(model, real(), None, samples=90, seed=0, metrics=["test/mask_iou"])


def test_every_class_is_generated_equally_often(assemble: Any, make_card: MakeCard, real: Any) -> None:
    asked: list[int] = []

    def draw(labels: Tensor, latent: Tensor) -> Canvas:
        asked.extend(labels.tolist())
        return Networks().draw(labels, latent)

    evaluate(assemble(make_card(), draw, Networks().read), real(), None, samples=90, seed=0, quick=True)
    assert [asked.count(k) for k in range(3)] == [30, 30, 30]


def test_a_generator_that_remembers_real_digits_is_as_diverse_as_they_are(
    assemble: Any, make_card: MakeCard, make_batch: MakeBatch, digits: Any
) -> None:
    image, label, _ = digits("train")

    def remember(labels: Tensor, latent: Tensor) -> Canvas:
        uniform = (1 + torch.erf(latent[:, 0] / 2**0.5)) / 2
        rows = [torch.nonzero(label == k)[:, 0] for k in range(10)]
        return Canvas(
            torch.stack(
                [image[rows[k][int(u * len(rows[k]))]] for k, u in zip(labels.tolist(), uniform.tolist(), strict=True)]
            )
        )

    model = assemble(make_card(10), remember)
    report = evaluate(model, [], [make_batch(image, label)], samples=2000, seed=0, metrics=["generated/diversity"])
    assert report["generated/diversity"] == pytest.approx(1, abs=0.02)
    assert report["generated/diversity_worst"] > 0.94


def test_names_of_metrics_are_checked_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"test/box_ap: unknown metric; did you mean 'test/box_ap50'\? possible: condition/caption, "
    ):
        evaluate_run(tmp_path / "none", EvaluationOptions(metrics=("test/box_ap",)))
