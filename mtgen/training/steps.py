"""The two steps. Each is its engine's module: one forward, one scalar, so that two DeepSpeed engines live in one process.

A step trains one side and reads the other, frozen: it is passed in a tuple, so that it is not registered as a submodule.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtgen import counter
from mtgen.balancing.build import build_gates
from mtgen.balancing.gate import Gate
from mtgen.config import Config
from mtgen.model import DiscriminatorSide, Networks
from mtgen.networks.discriminator import Discriminator
from mtgen.networks.generator import Generator
from mtgen.schema import Batch, Canvas, Condition
from mtgen.tasks.base import Losses, Scene, Task, Views
from mtgen.training.augment import Strength, Warp
from mtgen.training.layout import Layout, lay_out

Log = dict[str, Tensor]


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Within it, the networks let gradients through and collect none."""
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class Step(nn.Module):
    """What both steps share: how a micro-batch is laid out, and how losses become one scalar.

    Args:
        config: of the run.
        tasks: those that are switched on.
        gate: where the tasks meet in the discriminator's features.
        strength: of the augmentation, one for both steps.
    """

    purpose: ClassVar[str]

    def __init__(self, config: Config, tasks: list[Task], gate: Gate, strength: Strength) -> None:
        super().__init__()
        self.config, self.tasks, self.gate, self.strength = config, tasks, gate, strength
        # Smaller noise drowns in the rounding of half precision, larger noise biases the estimate (measured: docs/decisions.md).
        self.sigma = config.tasks["generation"].sigma or (0.01 if config.precision == "fp32" else 0.1)

    def _autocast(self, device: torch.device) -> torch.autocast:
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.precision]
        return torch.autocast(device.type, kind, enabled=self.config.precision != "fp32")

    def _normal(self, name: str, position: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return counter.normal(self.config.seed, f"{self.purpose} {name}", position, shape, device)

    def _warp(self, layout: Layout, kind: str) -> Warp:
        which = kind if kind == "real" else f"{self.purpose} {kind}"
        position, device = layout.batch.position, layout.batch.image.device
        return Warp(self.config.augment, self.strength.probability, self.config.seed, position, f"{self.purpose} {kind}", which, device)

    def _scene(self, layout: Layout, condition: Condition, generator: Generator, discriminator: Discriminator) -> Scene:
        """The real samples, augmented and as canvases; the generated ones follow."""
        original, device = layout.batch, layout.batch.image.device
        warp = self._warp(layout, "real")
        batch = replace(original, image=warp(original.image), mask=warp.mask(original.mask))
        mask = None
        if classes := generator.mask_classes:  # a pixel of unknown class (255) is all zeros
            mask = F.one_hot(batch.mask.clamp(max=classes), classes + 1)[..., :classes].permute(0, 3, 1, 2).float()
        return Scene(
            batch=batch,
            original=original,
            condition=condition,
            real=Canvas(batch.image, mask, layout.shown),
            reading=layout.reading,
            plain=layout.plain,
            penalised=layout.penalised,
            discriminator=discriminator,
            generator=generator,
            noise=self._normal("posterior", layout.plain_position, (generator.latent,), device),
            sigma=self.sigma,
            counts=layout.counts,
        )

    def _views(self, features: list[Tensor], reading: int) -> dict[str, Views]:
        """Every task's own copies of the trunk's features, split into reading rows and the rest."""
        shared = [level[:reading] for level in features] + [features[0][reading:]]
        return {name: Views(views[:-1], views[-1]) for name, views in self.gate(shared).items()}

    def _total(self, losses: dict[str, Losses]) -> tuple[Tensor, Log]:
        """The weighted sum of all losses, and each of them, weighted, to log."""
        log: Log = {}
        total: Tensor | None = None
        of_tasks: dict[str, Tensor] = {}
        for task in self.tasks:
            for name, loss in losses.get(task.name, {}).items():
                weighted = loss if task.settings.weight == 1 else task.settings.weight * loss
                log[f"{task.name}_{name}"] = weighted.detach()
                total = weighted if total is None else total + weighted
                of_tasks[task.name] = of_tasks[task.name] + weighted.detach() if task.name in of_tasks else weighted.detach()
        self.gate.hear(of_tasks)
        assert total is not None  # generation always gives one
        return total, log


class DiscriminatorStep(Step):
    """Train trunk, heads, decoder and conditions; the generator is read, never trained."""

    purpose = "discriminator"

    def __init__(self, config: Config, tasks: list[Task], gate: Gate, strength: Strength, side: DiscriminatorSide) -> None:
        super().__init__(config, tasks, gate, strength)
        self.side = side

    def forward(self, batch: Batch, read: tuple[Generator]) -> tuple[Tensor, Log]:
        """A micro-batch and the frozen generator -> one scalar, and detached numbers to log."""
        (generator,) = read
        layout = lay_out(self.config, batch, self.strength.probability)
        batch, device = layout.batch, layout.batch.image.device
        discriminator = self.side.discriminator
        with self._autocast(device):
            condition = self.side.conditions(batch.label, batch.present["class"])
            scene = self._scene(layout, condition, generator, discriminator)
            with torch.no_grad():
                fake = generator(self._normal("latent", batch.position, (generator.latent,), device), condition)
            scene.fake = self._warp(layout, "fake").canvas(replace(fake, shown=layout.shown))
            near = [
                self._near(scene, canvas, name, layout.penalised_position) for canvas, name in ((scene.real, "real"), (scene.fake, "fake"))
            ]
            features = discriminator.trunk(Canvas.cat([scene.real, scene.fake, *near]))
            views = self._views(features, layout.reading)
            losses = {task.name: task.discriminator_losses(scene, views[task.name]) for task in self.tasks}
            if scene.ahead is not None:
                self.strength.observe(scene.ahead)
            return self._total(losses)

    def _near(self, scene: Scene, canvas: Canvas, name: str, position: Tensor) -> Canvas:
        """The penalised rows with a little noise on everything that the discriminator sees of them."""
        device = canvas.image.device
        part = canvas.map(lambda x: x[scene.penalised])

        def noised(x: Tensor, what: str) -> Tensor:
            return x + scene.sigma * self._normal(f"{what} {name}", position, tuple(x.shape[1:]), device)

        return Canvas(noised(part.image, "image"), None if part.mask is None else noised(part.mask, "mask"), part.shown)


class GeneratorStep(Step):
    """Train the generator through the frozen discriminator."""

    purpose = "generator"

    def __init__(self, config: Config, tasks: list[Task], gate: Gate, strength: Strength, canvas_gate: Gate, generator: Generator) -> None:
        super().__init__(config, tasks, gate, strength)
        self.canvas_gate, self.generator = canvas_gate, generator

    def forward(self, batch: Batch, read: tuple[DiscriminatorSide]) -> tuple[Tensor, Log]:
        """A micro-batch and the frozen discriminator's side -> one scalar, and detached numbers to log."""
        (side,) = read
        layout = lay_out(self.config, batch, self.strength.probability)
        batch, device = layout.batch, layout.batch.image.device
        discriminator = side.discriminator
        with self._autocast(device):
            with torch.no_grad():
                condition = side.conditions(batch.label, batch.present["class"])
                scene = self._scene(layout, condition, self.generator, discriminator)
                scene.real_features = discriminator.trunk(scene.real)
            latent = self._normal("latent", batch.position, (self.generator.latent,), device)
            drawn = self._draw(scene, latent)
            canvas = replace(drawn.pop("discriminator"), shown=layout.shown)
            if not self.config.tasks["generation"].joint_gradient:  # where the mask is judged too, the judgement trains the mask alone
                canvas.image = torch.where(layout.shown[:, None, None, None], canvas.image.detach(), canvas.image)
            scene.fake = self._warp(layout, "fake").canvas(canvas)
            views = self._views(discriminator.trunk(scene.fake), layout.reading)
            losses = {task.name: task.generator_losses(scene, views[task.name]) for task in self.tasks}
            for task in self.tasks:
                if task.name in drawn:
                    losses[task.name] |= task.canvas_losses(scene, drawn[task.name])
            return self._total(losses)

    def _draw(self, scene: Scene, latent: Tensor) -> dict[str, Canvas]:
        """One forward of the generator for the discriminator and for every task that asks for canvases of its own.

        The canvas gate arbitrates between what comes back through the discriminator and the tasks' losses on pixels.
        """
        asked = {"discriminator": (latent, scene.condition)}
        asked |= {task.name: request for task in self.tasks if (request := task.request(scene)) is not None}
        condition = Condition(torch.cat([condition.pooled for _, condition in asked.values()]))
        canvas = self.generator(torch.cat([latent for latent, _ in asked.values()]), condition)
        sizes = [len(latent) for latent, _ in asked.values()]
        tensors = [canvas.image] if canvas.mask is None else [canvas.image, canvas.mask]
        pieces = [list(tensor.split(sizes)) for tensor in tensors]
        views = self.canvas_gate([piece for tensor in pieces for piece in tensor])
        return {name: Canvas(*views[name][number :: len(sizes)]) for number, name in enumerate(asked)}


def build_steps(
    config: Config, networks: Networks, strength: Strength | None = None
) -> tuple[DiscriminatorStep, GeneratorStep, dict[str, Gate]]:
    """Both steps over the networks, and the gates in them by name: "discriminator", "generator" and "canvas".

    Args:
        strength: of the augmentation; default: as configured.
    """
    tasks, strength = networks.tasks, strength or Strength(config.augment)
    names = [task.name for task in tasks]
    layers = [blocks[-1].second for blocks in networks.side.discriminator.descent.levels]  # type: ignore[index]
    gates = build_gates(config, names, [task.name for task in tasks if task.draws], layers)
    d_step = DiscriminatorStep(config, tasks, gates["discriminator"], strength, networks.side)
    return d_step, GeneratorStep(config, tasks, gates["generator"], strength, gates["canvas"], networks.generator), gates
