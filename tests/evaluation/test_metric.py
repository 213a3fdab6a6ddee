"""What a metric declares: its streams, its state, and what goes wrong where they do not fit together."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtgen.evaluation.base import MetricContext, Stream
from mtgen.evaluation.collection import MetricCollection
from mtgen.evaluation.collectors.base import Collector
from mtgen.evaluation.collectors.box_average_precision import BoxAveragePrecision
from mtgen.evaluation.collectors.class_moments import ClassMoments
from mtgen.evaluation.collectors.confusion_matrix import ConfusionMatrix
from mtgen.evaluation.collectors.features import FeatureStatistics
from mtgen.evaluation.collectors.ratio import Ratio
from mtgen.evaluation.collectors.row_buffer import RowBuffer
from mtgen.evaluation.collectors.uniform_subsample import UniformSubsample
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.evaluation.serialization import pack, unpack
from mtgen.evaluation.streams import GeneratedPart
from mtgen.schema import Canvas, DatasetCard, Prediction

CONTEXT = MetricContext(DatasetCard(name="test", splits={}), samples=10)
UPDATE_METHODS = {
    Stream.TRAIN: "update_train",
    Stream.GENERATED: "update_generated",
    Stream.TEST: "update_test",
    Stream.RECONSTRUCTIONS: "update_reconstruction",
    Stream.RECONSTRUCTION_FEATURES: "update_reconstruction_features",
    Stream.CONDITIONS: "update_condition",
    Stream.EMBEDDINGS: "update_embeddings",
    Stream.TRANSLATIONS: "update_translation",
}


class Brightness(Metric):
    """A metric as a user writes it."""

    numbers = {"generated/brightness": None}
    streams = (Stream.GENERATED,)

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.mean = self.add_state("mean", Ratio())

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        self.mean.update(float(canvas.image.sum()), canvas.image.numel())

    def compute(self) -> dict[str, float]:
        return {"generated/brightness": self.mean.compute("no image was generated")}


@pytest.mark.parametrize("name", METRICS.names())
def test_a_metric_of_mtgen_declares_the_streams_that_it_defines_update_methods_for(name: str) -> None:
    defined = {
        stream
        for stream, method in UPDATE_METHODS.items()
        if getattr(METRICS[name], method) is not getattr(Metric, method)
    }
    assert set(METRICS[name].streams) == defined


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"streams": ()}, r"^Wrong.streams: empty, so nothing is measured; name the streams .*Stream.GENERATED"),
        ({"streams": (Stream.GENERATED, Stream.CONDITIONS)}, "^Wrong.conditions: goes with Stream.CONDITIONS"),
        ({"conditions": ("class",)}, "^Wrong.conditions: goes with Stream.CONDITIONS"),
        ({"streams": (Stream.RECONSTRUCTION_FEATURES,)}, "^Wrong.compares: .* needs Stream.TEST in it"),
    ],
)
def test_declarations_that_do_not_fit_together_are_an_error_that_names_the_attribute(
    monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any], message: str
) -> None:
    wrong = type("Wrong", (Brightness,), attributes)
    monkeypatch.setitem(METRICS._entries, "generated/wrong", wrong)
    with pytest.raises(TypeError, match=message):
        MetricCollection(["generated/wrong"], CONTEXT)


def test_a_metric_without_registered_state_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stateless(Brightness):
        def __init__(self, context: MetricContext) -> None:
            Metric.__init__(self, context)
            self.mean = Ratio()

    monkeypatch.setitem(METRICS._entries, "generated/wrong", Stateless)
    with pytest.raises(TypeError, match=r"^Stateless: has no state, .* add_state\(\)"):
        MetricCollection(["generated/wrong"], CONTEXT)


def test_a_declared_stream_without_update_method_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Undefined(Metric):
        streams = (Stream.GENERATED,)

        def __init__(self, context: MetricContext) -> None:
            super().__init__(context)
            self.add_state("mean", Ratio())

    monkeypatch.setitem(METRICS._entries, "generated/wrong", Undefined)
    collection = MetricCollection(["generated/wrong"], CONTEXT)
    labels = torch.zeros(2, dtype=torch.int64)
    part = GeneratedPart(torch.arange(2), Canvas(torch.zeros(2, 1, 4, 4)), labels, Prediction(), None)
    with pytest.raises(NotImplementedError, match=r"Stream.GENERATED, but Undefined does not define update_generated"):
        collection.update(part)


def filled_subsample() -> UniformSubsample:
    subsample = UniformSubsample(3)
    for number in range(4):
        subsample.update(torch.arange(4) + number, position=torch.arange(4) + 4 * number)
    return subsample


def filled(collector: Any, *arguments: Any) -> Any:
    collector.update(*arguments)
    return collector


def filled_rows() -> RowBuffer:
    rows = RowBuffer()
    for _ in range(2):
        rows.append(torch.rand(3, 2), torch.arange(3))
    return rows


LABELS = torch.tensor([0, 1, 1, 0])
BOXES = torch.tensor([[[0.1, 0.1, 0.5, 0.5, 1.0]], [[0.2, 0.2, 0.7, 0.7, 0.0]]])


@pytest.mark.parametrize(
    ("make", "make_filled"),
    [
        (Ratio, lambda: filled(Ratio(), 1.5, 3)),
        (RowBuffer, filled_rows),
        (RowBuffer, RowBuffer),
        (lambda: ConfusionMatrix(2), lambda: filled(ConfusionMatrix(2), LABELS, 1 - LABELS)),
        (lambda: ClassMoments(2), lambda: filled(ClassMoments(2), torch.rand(4, 1, 2, 2), LABELS)),
        (lambda: UniformSubsample(3), filled_subsample),
        (lambda: UniformSubsample(3), lambda: UniformSubsample(3)),
        (lambda: FeatureStatistics(2), lambda: filled(FeatureStatistics(2), torch.rand(4, 2), torch.arange(4))),
        (
            lambda: BoxAveragePrecision(2),
            lambda: filled(BoxAveragePrecision(2), BOXES, torch.cat([BOXES, torch.ones(2, 1, 1)], 2)),
        ),
    ],
)
def test_a_collector_is_restored_from_its_saved_state(
    make: Callable[[], Collector], make_filled: Callable[[], Collector]
) -> None:
    original, restored = make_filled(), make()
    tensors: dict[str, Tensor] = {}
    restored.load_state_dict(unpack(pack(original.state_dict(), tensors), tensors))
    again: dict[str, Tensor] = {}
    assert pack(restored.state_dict(), again) == pack(original.state_dict(), tensors := {})
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
