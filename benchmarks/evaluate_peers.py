"""Run one evaluation of `evaluate_speed.py` on one thread; the last line of the output is JSON.

Each evaluation compares the same two sets of uint8 images, in memory, by the features of the same Inception.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Numbers = dict[str, float]


def mtgen(a: argparse.Namespace, real: Tensor, generated: Tensor) -> Callable[[], Numbers]:
    """FID; with four metrics also KID, precision and recall, density and coverage."""
    import hashlib

    from mtgen.config import ExtractorConfig
    from mtgen.evaluation.base import Stream
    from mtgen.evaluation.evaluate import evaluate
    from mtgen.evaluation.metric import METRICS
    from mtgen.evaluation.metrics.frechet_distance import FrechetDistance, frechet_distance
    from mtgen.evaluation.streams import GeneratedPart, RequestedOutputs, Stage, StreamPart, TrainFeatures
    from mtgen.schema import Canvas, DatasetCard, Prediction

    @METRICS.register("distribution/fd_of_few")
    class FidOfFew(FrechetDistance):
        """FID of any number of images, as the peers compute it; mtgen's needs more images than feature dimensions."""

        def compute(self) -> Numbers:
            train, generated = (self.features.get(stream, 2) for stream in (Stream.TRAIN, Stream.GENERATED))
            return {"distribution/fid": frechet_distance(train, generated)}

    class PrecomputedModel:
        """The attributes that an evaluation needs of a model whose images exist already."""

        card, conditions, translates = DatasetCard(name="images", splits={}), (), None
        backbone, device = None, torch.device("cpu")

    def gather(stage: Stage, wanted: RequestedOutputs, start: int) -> Iterator[StreamPart]:
        assert wanted.extractor is not None
        images = generated if stage == Stage.GENERATED else real
        for rows in torch.arange(len(images)).split(a.batch):
            image = images[rows].float() / 127.5 - 1
            features, none = wanted.extractor(image), torch.full((len(rows),), -1)
            if stage == Stage.TRAIN_FEATURES:
                yield TrainFeatures(rows, features)
            else:
                yield GeneratedPart(rows, Canvas(image), none, Prediction(), features)

    weights = Path(a.weights)
    extractor = ExtractorConfig(
        kind="inception", path=a.weights, sha256=hashlib.sha256(weights.read_bytes()).hexdigest()
    )
    names = ["distribution/fd_of_few", *(["distribution/kd", "distribution/prdc"] if a.metrics == 4 else [])]

    def run() -> Numbers:
        model: Any = PrecomputedModel()
        report = evaluate(
            model, [], [], samples=len(generated), seed=0, metrics=names, extractor=extractor, source=gather
        )
        return {name.partition("/")[2]: value for name, value in report.items()}

    return run


def torch_fidelity(a: argparse.Namespace, real: Tensor, generated: Tensor) -> Callable[[], Numbers]:
    """FID; with four metrics also KID, precision and recall."""
    _make_torchvision_importable()
    import torch_fidelity
    from torch.utils.data import Dataset

    class Images(Dataset[Tensor]):
        def __init__(self, images: Tensor) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, number: int) -> Tensor:
            return self.images[number]

    four = {"kid": True, "prc": True, "kid_subset_size": min(1000, len(generated))} if a.metrics == 4 else {}
    options = {
        "cuda": False,
        "cache": False,
        "verbose": False,
        "save_cpu_ram": True,
        "batch_size": a.batch,
        "feature_extractor": "inception-v3-compat",
        "feature_extractor_weights_path": str(Path(a.weights).with_suffix(".pth")),
    }

    def run() -> Numbers:
        found = torch_fidelity.calculate_metrics(
            input1=Images(generated), input2=Images(real), fid=True, **four, **options
        )
        return {"fid": found["frechet_inception_distance"], **found}

    return run


def _torchmetrics(a: argparse.Namespace, real: Tensor, generated: Tensor, shared: bool) -> Callable[[], Numbers]:
    """FID; with four metrics also KID, MIFID and the Inception score."""
    _make_torchvision_importable()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance
    from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance
    from torchmetrics.wrappers import FeatureShare

    class Inception(nn.Module):
        num_features = 2048

        def __init__(self) -> None:
            super().__init__()
            path = str(Path(a.weights).with_suffix(".pth"))
            self.network = FeatureExtractorInceptionV3(
                "inception", ["2048"], feature_extractor_weights_path=path
            ).eval()

        def forward(self, image: Tensor) -> Tensor:
            with torch.no_grad():
                return self.network(image)[0]

    def run() -> Numbers:
        network = Inception()
        metrics: dict[str, Any] = {"fid": FrechetInceptionDistance(feature=network)}
        if a.metrics == 4:
            metrics["kid"] = KernelInceptionDistance(feature=network, subset_size=min(1000, len(generated)))
            metrics["mifid"] = MemorizationInformedFrechetInceptionDistance(feature=network)
            metrics["score"] = InceptionScore(feature=network)
        fed = FeatureShare(metrics, max_cache_size=1) if shared else metrics
        for images, is_real in ((real, True), (generated, False)):
            for part in images.split(a.batch):
                if "score" in metrics and not is_real:
                    metrics["score"].update(part)
                for name in ("fid", "kid", "mifid"):
                    if name in metrics:
                        fed[name].update(part, real=is_real)
        numbers = {}
        for name, metric in metrics.items():
            value = metric.compute()
            numbers[name] = float(value[0] if isinstance(value, tuple) else value)
        return numbers

    return run


def _make_torchvision_importable() -> None:
    """Declare the operators that PyPI's torchvision does not find with a CPU build of torch; none is used here."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float overlap) -> Tensor")
        _LIBRARIES.append(library)


_LIBRARIES: list[Any] = []
"""Keeps the declarations alive."""
EVALUATIONS: dict[str, Callable[[argparse.Namespace, Tensor, Tensor], Callable[[], Numbers]]] = {
    "mtgen": mtgen,
    "torch-fidelity": torch_fidelity,
    "torchmetrics": lambda a, real, generated: _torchmetrics(a, real, generated, False),
    "torchmetrics, features shared": lambda a, real, generated: _torchmetrics(a, real, generated, True),
}


def _used() -> float:
    """CPU seconds of this process and of its finished child processes."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    """Run one evaluation, and print its metrics and its cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EVALUATIONS)
    parser.add_argument("--images", required=True, help="safetensors file with the tensors real and generated")
    parser.add_argument(
        "--weights", required=True, help="safetensors file of the Inception, with a .pth file beside it"
    )
    parser.add_argument("--metrics", type=int, choices=(1, 4), required=True)
    parser.add_argument("--batch", type=int, default=16)
    a = parser.parse_args()
    torch.set_num_threads(1)
    images = load_file(a.images)
    run = EVALUATIONS[a.name](a, images["real"], images["generated"])
    begin, used = time.monotonic(), _used()
    numbers = run()
    print(json.dumps({"seconds": time.monotonic() - begin, "cpu_seconds": _used() - used, "numbers": numbers}))


if __name__ == "__main__":
    main()
