"""Feature extractors: networks from files with a checksum, or a small one that is trained on the real data."""

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mtgen.config import EXTRACTORS, ExtractorConfig
from mtgen.errors import ConfigError, last_line
from mtgen.evaluation.reference.classifier import Classifier, shrink_images
from mtgen.registry import suggest
from mtgen.visualization.grids import to_uint8

PROBE_SIDE_PIXELS = 32
"""Side of the two images that the network of a file is tested with, pixels."""


class FeatureExtractor(Protocol):
    """A network that computes features of images.

    Attributes:
        name: part of the names of the numbers that use it.
    """

    name: str

    @property
    def digest(self) -> str:
        """Identifies its features in caches: a checksum over its parameters and its preprocessing."""
        ...

    def __call__(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> features `[B,D]` float32, on the CPU."""
        ...


class FileExtractor:
    """A network from a file, see `mtgen.evaluation.extractors`. Pickled without the network, which is loaded again.

    Args:
        settings: `evaluate.extractor`.
        device: where it computes.

    Raises:
        ConfigError: the kind or the file does not exist, the checksum differs, or the network does not return one
            vector per image.
    """

    def __init__(self, settings: ExtractorConfig, device: torch.device | str = "cpu") -> None:
        self.settings = settings
        self.device = device
        if settings.kind not in EXTRACTORS:
            raise ConfigError(
                f"evaluate.extractor.kind={settings.kind}: unknown; {suggest(settings.kind, EXTRACTORS.names())}"
            )
        self.name = settings.name or settings.kind
        _verify_checksum(Path(settings.path), settings.sha256)
        self._probe()

    @cached_property
    def network(self) -> nn.Module:
        """uint8 images `[B,3,H,W]` -> `[B,D]`."""
        network = EXTRACTORS[self.settings.kind](Path(self.settings.path), self.settings)
        return network.eval().requires_grad_(False).to(self.device)

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "device": self.device, "name": self.name}

    @property
    def digest(self) -> str:
        """A checksum over the settings except the file's path: they include the checksum of its content."""
        return hashlib.sha256(self.settings.model_dump_json(exclude={"path"}).encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        # as a file would store them, so that the numbers equal those computed from files
        pixels = to_uint8(image).expand(-1, 3, -1, -1)
        return self.network(pixels.to(self.device)).float().cpu()

    def _probe(self) -> None:
        """Check that the network works on images."""
        key = f"evaluate.extractor.path={self.settings.path}"
        try:
            features = self(torch.zeros(2, 3, PROBE_SIDE_PIXELS, PROBE_SIDE_PIXELS))
        except ConfigError:
            raise
        except Exception as error:  # a third party's network can raise anything
            raise ConfigError(f"{key}: cannot be used on images [B,3,H,W] ({last_line(error)})") from error
        if features.dim() != 2 or len(features) != 2 or not features.isfinite().all():
            raise ConfigError(
                f"{key}: returns {list(features.shape)} for two images; "
                "it must return two vectors of finite numbers, [2, D]"
            )


class SmallCNN:
    """The last hidden layer of the reference classifier: 128 features of images with sides of at most 32 pixels.

    It knows what distinguishes the classes of this data set, and nothing else. Its distances compare runs on one data
    set; they are not FID.
    """

    name = "small_cnn"

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    @cached_property
    def digest(self) -> str:
        """A checksum over the network's parameters."""
        return digest_of(self.classifier.network)

    def __call__(self, image: Tensor) -> Tensor:
        return self.classifier.features(shrink_images(image))


def digest_of(network: nn.Module) -> str:
    """SHA-256 over a network's parameters."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def shares_tensors(network: nn.Module, other: nn.Module) -> bool:
    """Whether two networks are one, by at least half of the other's weights, whatever their names are."""
    own, others = (
        {tensor.cpu().contiguous().numpy().tobytes() for tensor in some.state_dict().values() if tensor.dim() > 1}
        for some in (network, other)
    )
    return len(own & others) * 2 > len(others)


def load_strictly(
    network: nn.Module, tensors: dict[str, Tensor], path: Path, ignored: Callable[[str], bool] = lambda name: False
) -> None:
    """Load the tensors of a file into a network.

    Args:
        ignored: whether to ignore a tensor of the file, by its name.

    Raises:
        ConfigError: a tensor is missing, unexpected or of another shape; names the first few.
    """
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not ignored(name)}
    wrong = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"{name}: unexpected" for name in sorted(found.keys() - expected.keys())]
    wrong += [
        f"{name}: {found[name]}, not {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    if wrong:
        raise ConfigError(
            f"evaluate.extractor.path={path}: holds another network "
            f"({len(wrong)} tensors differ; {'; '.join(wrong[:3])}); give the file of the configured kind"
        )
    network.load_state_dict({name: tensors[name] for name in expected}, strict=False)


def _verify_checksum(path: Path, expected: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"evaluate.extractor.path={path}: cannot be read ({error.strerror})") from None
    if found != expected.lower():
        raise ConfigError(
            f"evaluate.extractor.sha256={expected}: {path} has {found}; "
            "give the right file, or its checksum if you trust it"
        )
