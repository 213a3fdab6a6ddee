"""Pretrained features of images, in the form in which the discriminator's trunk reads them.

Source: Sauer et al. 2021 (Projected GAN), who judge images by pretrained features.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtgen.errors import ConfigError, last_line
from mtgen.networks.device_constants import constant

SIDE_MULTIPLE = 32
"""Input sides are multiples of it: the stride of the deepest features of most networks."""
PROBE_IMAGES = 16
"""Images by which the scale of each level is measured."""
PROBE_SEED = 0


@dataclass(frozen=True)
class BackboneSpec:
    """How images enter a pretrained network, and what of its features is used.

    Attributes:
        size: height and width of the run's images, pixels.
        side: longer side of the network's input, pixels.
        mean, std: of each channel of images in [0, 1], which the network's input is normalized with.
        sides: height and width of the levels of the trunk, lowest resolution first.
        levels: most levels of features to use, from the lowest resolution up.
        trainable: whether the network is trained.
    """

    size: tuple[int, int]
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sides: tuple[tuple[int, int], ...]
    levels: int
    trainable: bool = False

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input, pixels."""
        factor = self.side / max(self.size)
        height, width = (max(1, round(side * factor / SIDE_MULTIPLE)) * SIDE_MULTIPLE for side in self.size)
        return height, width


class Backbone(nn.Module):
    """Features of a pretrained network for the lowest levels of the trunk, each of standard deviation 1.

    A frozen network is not registered as a module, so nothing of it is trained, averaged or checkpointed. Gradients
    pass through it to images that need them.

    Args:
        network: images `[B,3,H,W]` -> features `[B,C,h,w]`, in any order of resolutions.
        spec: how images enter it, and what of its features is used.
        named: how the user named it, as `key=path`; for messages.

    Attributes:
        channels: of each level of features, lowest resolution first.
        is_script: whether the network is TorchScript, which other exporters cannot trace.
        scales: standard deviation of each level for images of 1/f noise, whose spectrum photographs have (Field 1987).

    Raises:
        ConfigError: the network does not return finite feature maps for images.
    """

    def __init__(self, network: nn.Module, spec: BackboneSpec, named: str) -> None:
        super().__init__()
        self.spec = spec
        self.levels = min(spec.levels, len(spec.sides))
        with torch.device("cpu"), torch.no_grad():
            found = self._probe(network, named)
        self.channels = [features.shape[1] for features in found]
        # rounded, so that neither threads nor instruction sets make workers differ
        self.scales = [float(f"{features.std().item():.3g}") for features in found]
        self.is_script = isinstance(network, torch.jit.ScriptModule)
        self.network: nn.Module | None = None
        self._frozen = (network,)
        if spec.trainable:
            network = self.network = copy.deepcopy(network).to(torch.get_default_device())
        for parameter in network.parameters():
            parameter.requires_grad_(spec.trainable)

    def _probe(self, network: nn.Module, named: str) -> list[Tensor]:
        """The features of images of noise, checked."""
        image = pink_noise(PROBE_IMAGES, self.spec.size)
        try:
            found = network(self._input(image))
            maps = self._lowest_first(found)
        except Exception as error:  # a third-party network may raise anything
            raise ConfigError(
                f"{named}: fails on images [B, 3, {self.spec.input_size[0]}, {self.spec.input_size[1]}] "
                f"({last_line(error)[:200]}); give a network that takes these, or another "
                "discriminator.backbone.input_side"
            ) from error
        shapes = ", ".join(str(list(features.shape)) for features in maps) or "nothing"
        if not maps or any(x.dim() != 4 or len(x) != PROBE_IMAGES or not x.isfinite().all() for x in maps):
            raise ConfigError(
                f"{named}: returns {shapes} for {PROBE_IMAGES} images; it must return feature maps of finite values, "
                "[B, C, h, w] each"
            )
        if any(features.std() == 0 for features in maps):
            raise ConfigError(f"{named}: returns the same features for all images; give a trained network")
        return maps

    def _lowest_first(self, found: Any) -> list[Tensor]:
        """The used levels of what a network returned, lowest resolution first; of equal ones, the deepest first."""
        maps = list(found.values()) if isinstance(found, dict) else list(found)
        return sorted(maps[::-1], key=lambda features: features.shape[2:].numel())[: self.levels]

    def _input(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> the network's input `[B,3,h,w]`."""
        x = F.interpolate(image.float(), size=self.spec.input_size, mode="bilinear", align_corners=False)
        mean, std = (
            constant(values, torch.float32, x.device).view(-1, 1, 1) for values in (self.spec.mean, self.spec.std)
        )
        return ((x / 2 + 0.5 - mean) / std).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)

    def _network_on(self, device: torch.device) -> nn.Module:
        if self.network is not None:
            return self.network
        (network,) = self._frozen
        tensor = next(iter([*network.parameters(), *network.buffers()]), None)
        if tensor is not None and tensor.device != device:
            # costs are counted on the meta device, where the values would be lost
            network = copy.deepcopy(network).to(device) if device.type == "meta" else network.to(device)
            self._frozen = (network,)
        return network

    def forward(self, image: Tensor) -> list[Tensor]:
        """Images `[B,C,H,W]` in [-1, 1] -> `[B,C,h,w]` for each of the lowest levels, lowest resolution first."""
        maps = self._lowest_first(self._network_on(image.device)(self._input(image)))
        return [
            F.interpolate(features / scale, size=side, mode="bilinear", align_corners=False)
            for features, scale, side in zip(maps, self.scales, self.spec.sides, strict=False)
        ]


def pink_noise(count: int, size: tuple[int, int]) -> Tensor:
    """Gray images `[count,1,H,W]` in [-1, 1] whose amplitude falls with the frequency, as that of photographs does."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    white = torch.randn(count, 1, *size, generator=generator)
    frequency = (torch.fft.fftfreq(size[0])[:, None] ** 2 + torch.fft.rfftfreq(size[1])[None] ** 2).sqrt()
    amplitude = 1 / frequency.clamp_min(1 / math.sqrt(size[0] * size[1]))
    pink = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=size)
    return (pink / (2 * pink.std())).clamp(-1, 1)
