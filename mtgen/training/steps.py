"""The two steps. Each is its engine's module: one forward, one scalar, so that two DeepSpeed engines live in one process.

A step trains one side and reads the other, frozen: it is passed in a tuple, so that it is not registered as a submodule.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtgen.balancing.factory import build_gates
from mtgen.balancing.gate import Gate
from mtgen.conditions.base import Modality
from mtgen.conditions.layout import mask_layout
from mtgen.config import Config
from mtgen.models.model import DiscriminatorModule, Networks
from mtgen.networks import center_maps
from mtgen.networks.generator import Generator
from mtgen.schema import Batch, Canvas, Condition, Prompt
from mtgen.tasks.base import LossDict, StepContext, Task, TaskFeatures
from mtgen.training.augment import AdaptiveAugmentation, Warp, sample_warp
from mtgen.training.batch_roles import BatchRoles, assign_roles
from mtgen.utils import counter_rng
from mtgen.utils.autocast import autocast

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


class TrainingStep(nn.Module):
    """What both steps share: how a micro-batch is laid out, and how losses become one scalar.

    Args:
        config: of the run.
        tasks: those that are switched on.
        gate: where the tasks meet in the discriminator's features.
        strength: of the augmentation, one for both steps.
    """

    purpose: ClassVar[str]

    def __init__(self, config: Config, tasks: list[Task], gate: Gate, strength: AdaptiveAugmentation) -> None:
        super().__init__()
        self.config = config
        self.tasks = tasks
        self.gate = gate
        self.strength = strength
        # Smaller noise drowns in the rounding of half precision, larger noise biases the estimate (measured: docs/decisions.md).
        chosen = config.tasks["generation"].penalty_sigma if config.generates else None
        self.sigma = chosen or (0.01 if config.precision == "fp32" else 0.1)

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.precision]
        return autocast(device, kind, enabled=self.config.precision != "fp32")

    def _normal(self, name: str, position: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return counter_rng.normal(self.config.seed, f"{self.purpose} {name}", position, shape, device)

    def _warp(self, layout: BatchRoles, kind: str) -> Warp:
        return sample_warp(
            self.config, self.strength.probability, layout.batch.position, self.purpose, kind, layout.batch.image.device
        )

    def _prompt(self, batch: Batch, side: DiscriminatorModule) -> Prompt:
        """What each sample can be asked for by, and what of it is asked for this time: by chance, a modality by itself."""
        device = batch.image.device
        values, given = {}, {}
        for name, settings in self.config.condition_settings().items():
            if name not in side.conditions.modalities:
                continue
            modality = side.conditions.modality(name)
            asked = (
                counter_rng.uniform(self.config.seed, f"{self.purpose} ask {name}", batch.position, 1)[:, 0]
                < settings.probability
            )
            given[name] = asked.to(device)
            if modality.component is not None:
                given[name] = given[name] & batch.present[modality.component]
            values[name] = (
                self._embedded(batch, side, asked) if name == "image" else self._varied(name, modality, batch)
            )
        return Prompt(len(batch), values, given)

    def _varied(self, name: str, modality: Modality, batch: Batch) -> Tensor:
        value = modality.value(batch)
        if not modality.varies:
            return value
        random = counter_rng.uniform(
            self.config.seed, f"{self.purpose} vary {name}", batch.position, modality.varies, value.device
        )
        return modality.varied(value, random)

    @staticmethod
    @torch.no_grad()
    def _embedded(batch: Batch, side: DiscriminatorModule, rows: Tensor) -> Tensor:
        """`[B,d]` embeddings of the images in `rows` (`[B]` bool, on the CPU), 0 elsewhere."""
        index = rows.nonzero().flatten().to(batch.image.device)
        empty = batch.image.new_zeros(len(batch), side.conditions.size)
        return empty.index_copy(0, index, side.embed(batch.image[index]).to(empty)) if len(index) else empty

    def _scene(self, layout: BatchRoles, side: DiscriminatorModule, generator: Generator) -> StepContext:
        """The real samples, augmented and as canvases, and what is asked for; the generated ones follow."""
        original, device = layout.batch, layout.batch.image.device
        warp = self._warp(layout, "real")
        batch = replace(original, image=warp(original.image), mask=warp.mask(original.mask))
        drawing = generator.canvas_spec
        mask = mask_layout(batch.mask, drawing.mask_classes) if drawing.mask_classes else None
        boxes = None
        if drawing.box_maps:
            assert original.boxes is not None  # the loader was asked for boxes
            grid = (original.image.shape[2] // drawing.stride, original.image.shape[3] // drawing.stride)
            boxes = warp(center_maps.encode(original.boxes, drawing.box_maps - 2, grid).canvas())
        prompt = self._prompt(original, side)
        encoded = side.conditions.encode(prompt)
        return StepContext(
            batch=batch,
            original=original,
            prompt=prompt,
            encoded=encoded,
            condition=side.conditions(prompt, encoded),
            real=Canvas(batch.image, mask, layout.shown, boxes, layout.boxed),
            reading=layout.reading,
            plain=layout.plain,
            plain_position=layout.plain_position,
            partner=layout.partner,
            pairs=layout.pairs,
            penalized=layout.penalized,
            side=side,
            generator=generator,
            noise=self._normal("posterior", layout.plain_position, (generator.latent,), device),
            pair_noise=self._normal("pair", layout.pair_position, (2, generator.latent), device),
            sigma=self.sigma,
            counts=layout.counts,
        )

    def _show(self, scene: StepContext, layout: BatchRoles, drawn: Canvas) -> None:
        """Put what was drawn into the scene as the discriminator sees it: augmented, its labels shown where the real ones are."""
        warp = self._warp(layout, "fake")
        scene.fake = warp.canvas(replace(drawn, shown=layout.shown, boxed=layout.boxed))
        scene.unaugmented = (~warp.changed).to(layout.batch.image.device)

    def _views(self, features: list[Tensor], reading: int, rows: int, own: dict[str, int]) -> dict[str, TaskFeatures]:
        """Every task's own copies of the trunk's features.

        Args:
            features: of the step's own rows (the first `reading` of them are images alone), then of what tasks submitted.
            rows: number of the step's own rows.
            own: task -> how many rows it submitted, in order.
        """
        levels = [level.split([reading, rows - reading, *own.values()]) for level in features]
        shared = [part for number in (0, *range(2, 2 + len(own))) for part in (level[number] for level in levels)] + [
            levels[0][1]
        ]
        size, places = len(levels), {name: number + 1 for number, name in enumerate(own)}
        found = {}
        for name, views in self.gate(shared).items():
            place = places.get(name)
            found[name] = TaskFeatures(
                views[:size], views[-1], [] if place is None else views[place * size : (place + 1) * size]
            )
        return found

    def _total(self, losses: dict[str, LossDict]) -> tuple[Tensor, Log]:
        """The weighted sum of all losses, and each of them, weighted, to log."""
        log: Log = {}
        total: Tensor | None = None
        of_tasks: dict[str, Tensor] = {}
        for task in self.tasks:
            for name, loss in losses.get(task.name, {}).items():
                weighted = loss if task.settings.weight == 1 else task.settings.weight * loss
                log[f"{task.name}_{name}"] = weighted.detach()
                total = weighted if total is None else total + weighted
                of_tasks[task.name] = (
                    of_tasks[task.name] + weighted.detach() if task.name in of_tasks else weighted.detach()
                )
        self.gate.set_losses(of_tasks)
        assert total is not None  # without generation only tasks that read are on, and the generator is not trained
        return total, log


class DiscriminatorStep(TrainingStep):
    """Train trunk, heads, decoder and conditions; the generator is read, never trained."""

    purpose = "discriminator"

    def __init__(
        self, config: Config, tasks: list[Task], gate: Gate, strength: AdaptiveAugmentation, side: DiscriminatorModule
    ) -> None:
        super().__init__(config, tasks, gate, strength)
        self.side = side

    def forward(self, batch: Batch, read: tuple[Generator]) -> tuple[Tensor, Log]:
        """A micro-batch and the frozen generator -> one scalar, and detached numbers to log."""
        (generator,) = read
        layout = assign_roles(self.config, batch, self.strength.probability, boxes=generator.canvas_spec.box_maps > 0)
        with self._autocast(layout.batch.image.device):
            scene = self._scene(layout, self.side, generator)
            shape = tuple(layout.batch.image.shape[1:])
            scene.pair_noise_image = self._normal("grain", layout.pair_position, shape, layout.batch.image.device)
            canvases = [scene.real, *(self._judged(scene, layout) if self.config.generates else [])]
            submitted = {
                task.name: canvas for task in self.tasks if (canvas := task.discriminator_canvases(scene)) is not None
            }
            features = self.side.discriminator.trunk(Canvas.cat([*canvases, *submitted.values()]))
            rows = sum(len(canvas.image) for canvas in canvases)
            views = self._views(
                features, layout.reading, rows, {name: len(canvas.image) for name, canvas in submitted.items()}
            )
            losses = {task.name: task.discriminator_losses(scene, views[task.name]) for task in self.tasks}
            if scene.logit_gap is not None:
                self.strength.observe_logit_gap(scene.logit_gap)
            return self._total(losses)

    def _judged(self, scene: StepContext, layout: BatchRoles) -> list[Canvas]:
        """What the real canvases are judged beside: the generated ones and, for finite differences, the penalized ones with some noise."""
        with torch.no_grad():
            latent = self._normal("latent", layout.batch.position, (scene.generator.latent,), layout.batch.image.device)
            self._show(scene, layout, scene.generator(latent, scene.condition))
        if self.config.tasks["generation"].penalty == "exact":
            return [scene.fake]
        near = [
            self._near(scene, canvas, name, layout.penalized_position)
            for canvas, name in ((scene.real, "real"), (scene.fake, "fake"))
        ]
        return [scene.fake, *near]

    def _near(self, scene: StepContext, canvas: Canvas, name: str, position: Tensor) -> Canvas:
        """The penalized rows with a little noise on everything that the discriminator sees of them."""
        device = canvas.image.device
        part = canvas.map(lambda x: x[scene.penalized])

        def noised(x: Tensor, what: str) -> Tensor:
            return x + scene.sigma * self._normal(f"{what} {name}", position, tuple(x.shape[1:]), device)

        return part.map_generated(noised)


class GeneratorStep(TrainingStep):
    """Train the generator through the frozen discriminator."""

    purpose = "generator"

    def __init__(
        self,
        config: Config,
        tasks: list[Task],
        gate: Gate,
        strength: AdaptiveAugmentation,
        canvas_gate: Gate,
        generator: Generator,
    ) -> None:
        super().__init__(config, tasks, gate, strength)
        self.canvas_gate = canvas_gate
        self.generator = generator

    def forward(self, batch: Batch, read: tuple[DiscriminatorModule]) -> tuple[Tensor, Log]:
        """A micro-batch and the frozen discriminator's side -> one scalar, and detached numbers to log."""
        (side,) = read
        layout = assign_roles(
            self.config, batch, self.strength.probability, boxes=self.generator.canvas_spec.box_maps > 0
        )
        device, trunk = layout.batch.image.device, side.discriminator.trunk
        with self._autocast(device):
            with torch.no_grad():
                scene = self._scene(layout, side, self.generator)
                scene.real_features = trunk(scene.real)
            drawn = self._draw(scene, self._normal("latent", layout.batch.position, (self.generator.latent,), device))
            canvas = drawn.pop("discriminator")
            if not self.config.tasks[
                "generation"
            ].joint_gradient:  # where labels are judged too, the judgment trains them alone
                judged = (layout.shown | layout.boxed)[:, None, None, None]
                canvas.image = torch.where(judged, canvas.image.detach(), canvas.image)
            self._show(scene, layout, canvas)
            asking = [task for task in self.tasks if task.name in drawn]
            submitted = {
                task.name: part
                for task in asking
                if (part := task.discriminator_part(scene, drawn[task.name])) is not None
            }
            features = trunk(Canvas.cat([scene.fake, *submitted.values()]))
            sizes = {name: len(part.image) for name, part in submitted.items()}
            views = self._views(features, layout.reading, len(layout.batch), sizes)
            losses = {task.name: task.generator_losses(scene, views[task.name]) for task in self.tasks}
            for task in asking:
                losses[task.name] |= task.canvas_losses(scene, drawn[task.name])
            return self._total(losses)

    def _draw(self, scene: StepContext, latent: Tensor) -> dict[str, Canvas]:
        """One forward of the generator for the discriminator and for every task that asks for canvases of its own.

        The canvas gate arbitrates between what comes back through the discriminator and the tasks' losses on pixels.
        """
        asked = {"discriminator": (latent, scene.condition)}
        asked |= {task.name: request for task in self.tasks if (request := task.generator_request(scene)) is not None}
        latents, conditions = zip(*asked.values(), strict=True)
        canvas = self.generator(torch.cat(latents), Condition.cat(list(conditions)))
        sizes = [len(latent) for latent in latents]
        names = [name for name in ("image", "mask", "boxes") if getattr(canvas, name) is not None]
        pieces = [piece for name in names for piece in getattr(canvas, name).split(sizes)]
        views = self.canvas_gate(pieces)
        return {
            who: Canvas(**dict(zip(names, views[who][number :: len(sizes)], strict=True)))
            for number, who in enumerate(asked)
        }


def build_steps(
    config: Config, networks: Networks, strength: AdaptiveAugmentation | None = None
) -> tuple[DiscriminatorStep, GeneratorStep, dict[str, Gate]]:
    """Both steps over the networks, and the gates in them by name: "discriminator", "generator" and "canvas".

    Args:
        strength: of the augmentation; default: as configured.
    """
    tasks, strength = networks.tasks, strength or AdaptiveAugmentation(config.augment)
    names = [task.name for task in tasks]
    layers = [blocks[-1].second for blocks in networks.side.discriminator.descent.levels]  # type: ignore[index]
    gates = build_gates(config, names, [task.name for task in tasks if task.requests_canvases], layers)
    d_step = DiscriminatorStep(config, tasks, gates["discriminator"], strength, networks.side)
    return (
        d_step,
        GeneratorStep(config, tasks, gates["generator"], strength, gates["canvas"], networks.generator),
        gates,
    )
