"""An interrupted evaluation resumes, and slow results are cached."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtgen.evaluation import resume, train_on_generated
from mtgen.evaluation.cache import CacheScope, TensorCache
from mtgen.evaluation.collection import MetricReport
from mtgen.evaluation.collectors import features
from mtgen.evaluation.evaluate import evaluate
from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.metrics import box_agreement
from mtgen.evaluation.reference import classifier, detector, segmenter
from mtgen.evaluation.reference.segmenter import Segmenter
from mtgen.evaluation.reference.training import TrainingSpec
from mtgen.evaluation.serialization import pack
from mtgen.evaluation.streams import RequestedOutputs, Stage, StreamPart, StreamProducer
from mtgen.models.model import Model
from mtgen.schema import Batch, Canvas, Prediction, Prompt

SAMPLES, BATCH = 90, 16


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "CLASSIFIER_TRAIN_IMAGES", 5 * classifier.CLASSIFIER_BATCH_SIZE)
    monkeypatch.setattr(detector, "DETECTOR_TRAIN_IMAGES", 5 * detector.DETECTOR_BATCH_SIZE)
    monkeypatch.setattr(segmenter, "SEGMENTER_TRAIN_IMAGES", 5 * segmenter.SEGMENTER_BATCH_SIZE)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress of an evaluation is saved after every part."""
    monkeypatch.setattr(resume, "MIN_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(resume, "SAVE_TIME_FACTOR", 0)


def mixed(x: Tensor, size: int) -> Tensor:
    """Each row times a fixed random matrix."""
    return x.flatten(1) @ torch.randn(x[0].numel(), size, generator=torch.Generator().manual_seed(size)) / 3


@pytest.fixture
def model(assemble: Any, make_card: Any) -> Model:
    """A model with every output: masks, boxes, embeddings, translations between classes."""

    def draw(labels: Tensor, latent: Tensor) -> Canvas:
        known = torch.cat([latent, F.one_hot(labels.clamp_min(0), 3)], 1)
        mask, maps = mixed(known, 3 * 64).view(-1, 3, 8, 8).softmax(1), mixed(known, 5 * 16).view(-1, 5, 4, 4).sigmoid()
        return Canvas(mixed(known, 64).view(-1, 1, 8, 8).tanh(), mask, boxes=maps)

    def read(image: Tensor) -> Prediction:
        corner = mixed(image, 8).sigmoid().view(-1, 4, 2) / 2
        kind, score = torch.arange(4)[None, :, None].expand(len(image), -1, 1) % 3, mixed(image, 4).sigmoid()[..., None]
        boxes = torch.cat([corner, corner + 0.4, kind, score], 2)
        masks, embedding = mixed(image, 3 * 64).view(-1, 3, 8, 8), F.normalize(mixed(image, 3), dim=1)
        return Prediction(mixed(image, 3), mixed(image, 3), masks, boxes, embedding=embedding)

    def turn(image: Tensor, prompt: Prompt) -> Canvas:
        return Canvas(-image)

    conditions = ["class", "caption", "sound", "image", "layout"]
    return assemble(
        make_card(3, 3),
        draw,
        read,
        lambda image, labels: Canvas(image * 0.9),
        conditions=conditions,
        translates="class",
        turn=turn,
    )


@pytest.fixture
def real(make_batch: Any) -> Callable[[int], list[Batch]]:
    def batches(seed: int) -> list[Batch]:
        g, made = torch.Generator().manual_seed(seed), []
        for position in torch.arange(96).split(BATCH):
            n = len(position)
            label, mask = torch.randint(0, 3, (n,), generator=g), torch.randint(0, 3, (n, 8, 8), generator=g)
            batch = make_batch(torch.rand(n, 1, 8, 8, generator=g) * 2 - 1, label, mask)
            batch.position, batch.labels = position, F.one_hot(label, 3).bool()
            batch.boxes = torch.cat([torch.full((n, 1, 2), 0.25), torch.full((n, 1, 2), 0.75), label.view(-1, 1, 1)], 2)
            batch.caption = label[:, None] + 1
            known = torch.ones(n, dtype=torch.bool)
            batch.present |= {"boxes": known, "tags": known, "caption": known, "sound": known}
            made.append(batch)
        return made

    return batches


class Stopped(Exception):
    pass


class CountingSource:
    """A source that counts the parts it produces, and stops before part `number` of a stage."""

    def __init__(
        self,
        model: Model,
        real: Callable[[int], list[Batch]],
        stage: str = "",
        number: int = 0,
        samples: int = SAMPLES,
    ) -> None:
        self.producer = StreamProducer(model, real(0), real(1), samples=samples, seed=0, batch_size=BATCH)
        self.stop = (stage, number)
        self.produced = dict.fromkeys(Stage, 0)

    def __call__(self, stage: Stage, outputs: RequestedOutputs, start: int) -> Iterator[StreamPart]:
        for number, part in enumerate(self.producer.parts(stage, outputs, start), start):
            if self.stop == (stage, number):
                raise Stopped
            self.produced[stage] += 1
            yield part


def measured(
    model: Model,
    real: Callable[[int], list[Batch]],
    source: CountingSource,
    folder: Path | None = None,
    **more: Any,
) -> MetricReport:
    names = [name for name in METRICS if not name.startswith("translation/class_kept")]
    caches = (
        {}
        if folder is None
        else {
            "data_cache": CacheScope(TensorCache(folder / "data")),
            "run_cache": CacheScope(TensorCache(folder / "run"), {"model": 1}),
        }
    )
    settings: dict[str, Any] = {"samples": SAMPLES, "seed": 0, "metrics": names, "batch_size": BATCH}
    return evaluate(model, real(0), real(1), source=source, **(settings | caches | more))


@pytest.mark.parametrize(
    "stop", [("train", 2), ("train_features", 3), ("generated", 0), ("generated", 4), ("test", 0), ("test", 5)]
)
def test_an_interrupted_evaluation_ends_with_the_same_numbers(
    model: Model, real: Any, tmp_path: Path, always: None, stop: tuple[str, int]
) -> None:
    whole = CountingSource(model, real)
    expected = measured(model, real, whole)
    assert len(expected) > 30 and set(expected.skipped) == {"distribution/fd"}  # it needs more images than this
    first, second = CountingSource(model, real, *stop), CountingSource(model, real)
    with pytest.raises(Stopped):
        measured(model, real, first, tmp_path)
    found = measured(model, real, second, tmp_path)
    assert found == expected and found.skipped == expected.skipped and found.closest == expected.closest
    assert {stage: first.produced[stage] + second.produced[stage] for stage in Stage} == whole.produced  # nothing twice
    assert found.resumed > 0 and expected.resumed == 0


def test_nothing_is_left_of_an_evaluation_that_has_ended(model: Model, real: Any, tmp_path: Path) -> None:
    measured(model, real, CountingSource(model, real), tmp_path)
    assert not (tmp_path / "run").exists()


def test_another_evaluation_does_not_resume_it(model: Model, real: Any, tmp_path: Path, always: None) -> None:
    with pytest.raises(Stopped):
        measured(model, real, CountingSource(model, real, "test", 2), tmp_path)
    other = {"run_cache": CacheScope(TensorCache(tmp_path / "run"), {"model": 2})}
    assert measured(model, real, CountingSource(model, real), tmp_path, **other).resumed == 0


def test_the_state_does_not_grow_with_the_generated_images(
    model: Model, real: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (box_agreement, features, train_on_generated):
        monkeypatch.setattr(module, "MAX_ROWS_KEPT", 40)
    held = []
    for samples in (80, 1600):
        with pytest.raises(Stopped):
            measured(
                model, real, CountingSource(model, real, "test", 0, samples), tmp_path / str(samples), samples=samples
            )
        (own,) = (tmp_path / str(samples) / "run").iterdir()
        held.append(sum(file.stat().st_size for file in own.glob("*.safetensors")))
    assert held[1] < 2 * held[0]  # between 40 and 80 rows of everything, and not 1,600


def test_reference_models_and_features_of_real_images_are_computed_once(
    model: Model, real: Any, tmp_path: Path
) -> None:
    told: list[str] = []

    def again() -> MetricReport:
        told.clear()
        return measured(
            model, real, CountingSource(model, real), tmp_path, progress=lambda stage, *_: told.append(stage)
        )

    once = {
        *(f"train the reference {model}" for model in ("classifier", "segmenter", "detector")),
        "features of the training split",
    }
    first, before = again(), set(told)
    assert once <= before
    assert again() == first
    assert before - set(told) == once


def test_a_cached_reference_model_is_the_one_that_was_trained(tmp_path: Path) -> None:
    image, mask = (
        torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8),
        torch.randint(0, 3, (40, 8, 8), dtype=torch.uint8),
    )
    cache, seen = CacheScope(TensorCache(tmp_path)), []
    first, second = (
        Segmenter(image, mask, 3, TrainingSpec(progress=lambda *n: seen.append(n), cache=cache)) for _ in range(2)
    )
    assert torch.equal(first.predict(image), second.predict(image)) and len(seen) == 5


def test_an_entry_is_found_by_its_key_and_damage_is_noticed(tmp_path: Path) -> None:
    cache, tensors = CacheScope(TensorCache(tmp_path / "cache"), {"data": "a"}), {"x": torch.arange(6.0)}
    assert cache.get() is None
    cache.put(tensors, {"note": [1, 2]})
    found = cache.get()
    assert found is not None and torch.equal(found[0]["x"], tensors["x"]) and found[1] == {"note": [1, 2]}
    assert cache.extend(more=1).get() is None and CacheScope(cache.cache, {"data": "b"}).get() is None
    cache.put({"x": torch.zeros(2)})
    assert len(list((tmp_path / "cache").iterdir())) == 2  # what it replaced is gone
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="damaged .* computed again"):
        assert cache.get() is None


def test_a_temporary_file_is_removed_by_its_process_or_by_another_after_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (tmp_path / f".{name}.safetensors.{pid}" for name, pid in (("a", 7), ("b", 8)))
    for left, age in ((old, 4_000), (new, 0)):
        left.touch()
        os.utime(left, (time.time() - age,) * 2)
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="cannot be written"):
        patch.setattr(os, "replace", refuse)
        CacheScope(TensorCache(tmp_path)).put({"x": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == [new]


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="cannot be written .* computed again next time"):
        CacheScope(TensorCache(tmp_path / "file")).put({"x": torch.zeros(1)})


def test_a_state_that_could_not_be_restored_is_refused() -> None:
    with pytest.raises(TypeError, match="Generator: cannot be saved as part of a metric's state"):
        pack({"generator": torch.Generator()}, {})
