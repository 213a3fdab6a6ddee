"""Feature extractors: networks from files that are named with their checksum, or a small one that is trained on the real data."""

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mtgen.config import EXTRACTORS, ExtractorConfig
from mtgen.errors import ConfigError, last_line
from mtgen.evaluation.classifier import Classifier, shrink_images
from mtgen.registry import suggest
from mtgen.visualization.grids import to_uint8

PROBE_SIDE_PIXELS = 32
"""Side of the two images that a file's network is tried with, pixels."""


class FeatureExtractor(Protocol):
    """Images in, features out.

    Attributes:
        name: part of the names of the metrics that use it.
        digest: of its parameters and of what it does to an image before they see it.
    """

    name: str

    @property
    def digest(self) -> str:
        """What tells its features from another extractor's: stored ones are found by it."""
        ...

    def __call__(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> features `[B,D]` float32, on the CPU."""
        ...


class FileExtractor:
    """A network from a file, see `mtgen.evaluation.extractors`; travels to another process as its settings alone.

    Args:
        settings: `evaluate.extractor`.
        device: where it computes.

    Raises:
        ConfigError: an unknown kind, no such file, another checksum, or a network that does not give one vector an image.
    """

    def __init__(self, settings: ExtractorConfig, device: torch.device | str = "cpu") -> None:
        self.settings = settings
        self.device = device
        if settings.kind not in EXTRACTORS:
            raise ConfigError(
                f"evaluate.extractor.kind={settings.kind}: unknown; {suggest(settings.kind, EXTRACTORS.names())}"
            )
        self.name = settings.name or settings.kind
        _check_sum(Path(settings.path), settings.sha256)
        self._try()

    @cached_property
    def network(self) -> nn.Module:
        """uint8 images `[B,3,H,W]` -> `[B,D]`."""
        return (
            EXTRACTORS[self.settings.kind](Path(self.settings.path), self.settings)
            .eval()
            .requires_grad_(False)
            .to(self.device)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "network"}

    @property
    def digest(self) -> str:
        """Of the settings, wherever the file lies: its checksum is among them."""
        return hashlib.sha256(self.settings.model_dump_json(exclude={"path"}).encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        pixels = to_uint8(image).expand(-1, 3, -1, -1)  # as a file would hold them: what metrics of files see, too
        return self.network(pixels.to(self.device)).float().cpu()

    def _try(self) -> None:
        where = f"evaluate.extractor.path={self.settings.path}"
        try:
            features = self(torch.zeros(2, 3, PROBE_SIDE_PIXELS, PROBE_SIDE_PIXELS))
        except ConfigError:
            raise
        except Exception as error:  # whatever a network of somebody else's raises
            raise ConfigError(f"{where}: cannot be used on images [B,3,H,W] ({last_line(error)})") from error
        if features.dim() != 2 or len(features) != 2 or not features.isfinite().all():
            raise ConfigError(
                f"{where}: gives {list(features.shape)} for two images; it has to be two vectors of finite numbers, [2, D]"
            )


class SmallCNN:
    """What the independent classifier sees before it decides: 128 numbers, of images with sides of 32 pixels at most.

    It knows what tells this data set's classes apart, and nothing of the world: its distances are for comparing runs on one data set,
    and are no FID.
    """

    name = "small_cnn"

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    @cached_property
    def digest(self) -> str:
        """Of the network's parameters."""
        return digest_of(self.classifier.network)

    def __call__(self, image: Tensor) -> Tensor:
        return self.classifier.features(shrink_images(image))


def digest_of(network: nn.Module) -> str:
    """SHA-256 over a network's parameters."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def load_strictly(
    network: nn.Module, tensors: dict[str, Tensor], path: Path, ignored: Callable[[str], bool] = lambda name: False
) -> None:
    """Fill a network with the tensors of a file.

    Raises:
        ConfigError: a tensor is missing, is too much or has another shape; names the first few.
    """
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not ignored(name)}
    wrong = [
        f"{name}: {given.get(name, 'missing')}, not {wanted.get(name, 'wanted')}"
        for name in sorted(wanted.keys() ^ given.keys())
    ]
    wrong += [
        f"{name}: {given[name]}, not {wanted[name]}"
        for name in wanted.keys() & given.keys()
        if given[name] != wanted[name]
    ]
    if wrong:
        raise ConfigError(
            f"evaluate.extractor.path={path}: holds another network ({len(wrong)} tensors differ; {'; '.join(wrong[:3])})"
        )
    network.load_state_dict({name: tensors[name] for name in wanted}, strict=False)


def _check_sum(path: Path, wanted: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"evaluate.extractor.path={path}: cannot be read ({error.strerror})") from None
    if found != wanted.lower():
        raise ConfigError(
            f"evaluate.extractor.sha256={wanted}: {path} has {found}; give the right file, or its checksum if you trust it"
        )
