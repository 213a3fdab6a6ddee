"""A small run on synthetic batches with the real networks: with DeepSpeed engines, and in a plain torch loop."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.retention import Retention
from mtgen.config import Config, validate
from mtgen.models.model import Networks, build
from mtgen.schema import Batch, DatasetCard, Split
from mtgen.training.deepspeed_engine import Engine
from mtgen.training.discriminator_step import DiscriminatorStep
from mtgen.training.generator_step import GeneratorStep
from mtgen.training.step import frozen
from mtgen.training.steps import build_steps

CARD = DatasetCard(
    name="toy", classes=["a", "b", "c"], mask_classes=["none", "thing"], splits={"train": Split(samples=1, shards="x")}
)


TASKS: dict[str, dict[str, Any]] = {
    "generation": {},
    "classification": {},
    "segmentation": {},
    "detection": {},
    "tagging": {},
    "reconstruction": {"features": 0.5},
    "alignment": {},
    "translation": {"side": 4, "channels": 3},
}
"""All tasks, with settings for 8x8 pixels."""

CONDITIONS: dict[str, dict[str, Any]] = {
    "class": {"probability": 0.6},
    "labels": {"probability": 0.4},
    "domain": {"probability": 0.6},
    "caption": {"tokens": 6},
    "sound": {},
    "image": {"probability": 0.3},
    "layout": {"probability": 0.5},
    "boxes": {"probability": 0.5},
}
"""All modalities, each given for some samples only."""


def everything(**changes: Any) -> Config:
    """A configuration with all tasks, all conditions and two domains."""
    data = {"mixture": [{"path": "here"}, {"path": "there"}], "channels": "gray", "sound": {"mels": 8, "seconds": 0.08}}
    return config(**{"data": data, "tasks": copy.deepcopy(TASKS), "conditions": copy.deepcopy(CONDITIONS), **changes})


def config(**changes: Any) -> Config:
    """A configuration of 8x8 pixels, whose steps take a few milliseconds.

    Args:
        changes: SECTION__KEY=value.
    """
    values: dict[str, Any] = {
        "name": "toy",
        "resolution": 8,
        "batch_size": 16,
        "device": "cpu",
        "precision": "fp32",
        "data": {"path": "nowhere", "channels": "gray"},
        "generator": {"widths": [8, 8], "latent": 4},
        "discriminator": {"widths": [8, 8], "decoder": 8, "embedding": 8},
        "tasks": {"generation": {}, "classification": {}, "segmentation": {}, "reconstruction": {}},
        "train": {"warmup": 0},
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return validate(values)


def batch(first: int, size: int, side: tuple[int, int] = (8, 8)) -> Batch:
    """The global batch that starts at position `first`; some samples lack a class, mask, boxes, caption or sound."""
    random = torch.Generator().manual_seed(first)
    present = {name: torch.rand(size, generator=random) < 0.7 for name in ("class", "mask")}
    mask = torch.randint(0, 2, (size, *side), generator=random)
    mask[~present["mask"]] = 255
    image = torch.rand(size, 1, *side, generator=random) * 2 - 1
    label = torch.randint(0, 3, (size,), generator=random)
    present |= {name: torch.rand(size, generator=random) < 0.7 for name in ("boxes", "caption", "sound")}
    present["tags"] = present["boxes"]
    boxes = some_boxes(size, random)
    boxes[~present["boxes"]] = NO_BOX
    words = torch.randint(1, 5, (size, 6), generator=random) * (
        torch.arange(6) < torch.randint(1, 7, (size, 1), generator=random)
    )
    return Batch(
        position=torch.arange(first, first + size),
        image=image,
        label=label,
        mask=mask,
        present=present,
        step_position=torch.arange(first, first + size),
        step_present=present,
        boxes=boxes,
        labels=F.one_hot(boxes[..., 4].long() + 1, 4)[..., 1:].amax(1).bool(),
        caption=words * present["caption"][:, None],
        sound=(torch.rand(size, 8, 8, generator=random) * 2 - 1) * present["sound"][:, None, None],
        domain=torch.randint(0, 2, (size,), generator=random),
    )


NO_BOX = torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0])


def some_boxes(size: int, random: torch.Generator) -> Tensor:
    """`[B,3,5]`: zero to two boxes per sample, and at least one row of padding."""
    corner, extent = (
        torch.rand(size, 3, 2, generator=random) * 0.6,
        0.2 + 0.2 * torch.rand(size, 3, 2, generator=random),
    )
    kind = torch.randint(0, 3, (size, 3, 1), generator=random)
    found = torch.cat([corner, corner + extent, kind], dim=2)
    found[torch.arange(3) >= torch.randint(0, 3, (size, 1), generator=random)] = NO_BOX
    return found


def steps(settings: Config) -> tuple[Networks, DiscriminatorStep, GeneratorStep]:
    """Networks on the configured device and the two steps, as the trainer builds them."""
    networks = build(settings, CARD)
    for network in (networks.generator, networks.side):
        network.to(settings.device)
    d_step, g_step, _ = build_steps(settings, networks)
    return networks, d_step, g_step


def parameters(networks: Networks) -> dict[str, Tensor]:
    """All trained parameters, copied to the CPU."""
    modules = {"generator": networks.generator, "side": networks.side}
    return {
        f"{m}.{n}": p.detach().to("cpu", copy=True).contiguous()
        for m, module in modules.items()
        for n, p in module.named_parameters()
    }


def discriminator_groups(settings: Config, networks: Networks) -> list[tuple[list[torch.nn.Parameter], float]]:
    """The discriminator module's parameters with the factors of their learning rate."""
    backbone = settings.discriminator.backbone
    return networks.side.parameter_groups(0.0 if backbone is None else backbone.learning_rate_factor)


def plain(settings: Config, number: int) -> dict[str, Tensor]:
    """The parameters after `number` alternating steps of a plain torch loop over whole global batches."""
    networks, d_step, g_step = steps(settings)
    rate = settings.discriminator.learning_rate
    optimizers = {
        name: torch.optim.Adam(groups, betas=(0.0, settings.train.beta2), foreach=False)
        for name, groups in (
            ("d", [{"params": own, "lr": rate * factor} for own, factor in discriminator_groups(settings, networks)]),
            ("g", [{"params": list(networks.generator.parameters()), "lr": settings.generator.learning_rate}]),
        )
    }
    micro = settings.batch_size // settings.train.accumulation
    usual = {"d": 0.0, "g": 0.0}
    for k in range(number):
        whole = batch(k * settings.batch_size, settings.batch_size).to(settings.device)
        for name, step, other in (("d", d_step, networks.generator), ("g", g_step, networks.side)):
            optimizers[name].zero_grad()
            with frozen(other):
                for begin in range(0, len(whole), micro):
                    loss, _ = step(whole.rows(slice(begin, begin + micro)), (other,))
                    (loss / settings.train.accumulation).backward()
            if settings.train.clip_factor:
                usual[name] = cut(optimizers[name], settings.train.clip_factor, usual[name])
            optimizers[name].step()
    return parameters(networks)


def cut(optimizer: torch.optim.Optimizer, clip: float, usual: float) -> float:
    """Clip the gradient to `clip` times the usual norm; return the new usual norm, an average of the clipped ones."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    if not usual:
        return norm
    if norm > clip * usual:
        for gradient in gradients:
            gradient.mul_(clip * usual / norm)
    return 0.98 * usual + 0.02 * min(norm, clip * usual)


class Deep:
    """The same with two DeepSpeed engines, on one of any number of workers."""

    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self.networks, d_step, g_step = steps(settings)
        self.engines = {
            "discriminator": Engine(
                settings,
                d_step,
                self.networks.side,
                settings.discriminator.learning_rate,
                discriminator_groups(settings, self.networks),
            ),
            "generator": Engine(settings, g_step, self.networks.generator, settings.generator.learning_rate),
        }

    def step(self, k: int, spoil: bool = False) -> None:
        """Take global step `k`.

        Args:
            spoil: fill this worker's images with NaN.
        """
        size, micro = self.settings.batch_size // dist.get_world_size(), self.settings.micro_batch
        mine = batch(k * self.settings.batch_size, self.settings.batch_size).rows(
            slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)
        )
        mine = mine.to(self.settings.device)
        if spoil:
            mine = dataclasses.replace(mine, image=torch.full_like(mine.image, float("nan")))
        for network, other in (("discriminator", self.networks.generator), ("generator", self.networks.side)):
            with frozen(other):
                for begin in range(0, len(mine), micro):
                    self.engines[network].train(mine.rows(slice(begin, begin + micro)), (other,))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Whole tensors of both engines."""
        return {side: engine.state(keep=True) for side, engine in self.engines.items()}

    def save(self, folder: Path, images: int) -> None:
        """Write a checkpoint, on the first worker."""
        state = self.state()
        if dist.get_rank() == 0:
            kept = {side: {"steps": e.steps_taken, **e.optimizer.counters()} for side, e in self.engines.items()}
            checkpoint.save(folder, images, state, {"optimizers": kept}, "", keep=Retention(1))

    def load(self, folder: Path) -> checkpoint.Checkpoint:
        """Continue from the newest checkpoint of a folder; returns it."""
        found = checkpoint.latest(folder, warn=pytest.fail)
        assert found is not None
        for side, engine in self.engines.items():
            counters = dict(found.state["optimizers"][side])
            engine.load(found.tensors(side), int(counters.pop("steps")), counters)
        return found


def in_group(rank: int, world: int, work: Any, folder: str, device: str, *arguments: Any) -> None:
    """Run `work(*arguments)` in a group of gloo or NCCL, and save its return value in the folder as `RANK.pt`."""
    import os

    os.environ.update(
        LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world), OMP_NUM_THREADS="1", DS_ACCELERATOR=device
    )
    torch.set_num_threads(1)
    if device == "cuda":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it, products have no fixed order
        torch.cuda.set_device(rank)
        torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=dist.FileStore(str(Path(folder) / "store"), world),
        rank=rank,
        world_size=world,
    )
    try:
        torch.save(work(*arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def spawn(world: int, work: Any, folder: Path, *arguments: Any, device: str = "cpu") -> list[Any]:
    """Run `work` in `world` processes, on a GPU each if `device` is "cuda"; return their return values, by rank."""
    torch.multiprocessing.spawn(in_group, (world, work, str(folder), device, *arguments), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def small_run(folder: Path, name: str, **changes: dict[str, Any]) -> Config:
    """A single-process run on 8x8 images of `folder/data`; `changes` are merged section by section."""
    values: dict[str, Any] = {
        "name": name,
        "runs": str(folder / "runs"),
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "resolution": 8,
        "batch_size": 16,
        "data": {"path": str(folder / "data")},
        "generator": {"widths": [8, 8], "latent": 4},
        "discriminator": {"widths": [8, 8], "decoder": 8, "embedding": 8},
        "tasks": {"generation": {"gamma": 1.0}, "classification": {}},
        "train": {
            "images": 640,
            "warmup": 0,
            "log_every": 80,
            "ema_half_life": 40,  # alarms judge metrics from 5 half-lives on: 200 images
            "final_rate": 1.0,
        },
        "checkpoint": {"every": 160, "keep": 10},
        "evaluate": {"every": 320},
    }
    for section, more in changes.items():
        values[section] = {**values.get(section, {}), **more}
    return validate(values)
