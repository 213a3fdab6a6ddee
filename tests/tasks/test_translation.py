"""Translation: identity, adversarial, cycle and class losses, pair by pair."""

import numpy as np
import pytest
import torch
from helpers import toy
from helpers.step_contexts import (
    discriminator_context,
    discriminator_features,
    generator_context,
    networks,
    task,
    task_features,
)
from torch import Tensor

from mtgen.config import validate
from mtgen.errors import ConfigError
from mtgen.models.model import build
from mtgen.schema import Canvas, Condition
from mtgen.tasks.base import StepContext

CONFIG = toy.everything(augment__probability=0.2, batch_size=32, tasks__translation__every=1)
MADE = networks(CONFIG)


def pairs(context: StepContext) -> list[tuple[int, int]]:
    return [(row, int(context.partner[row])) for row in context.pairs.tolist()]


def domain_vector(context: StepContext, row: int) -> Tensor:
    """`[1,d]` of length sqrt(d): the learned vector of a row's domain."""
    assert context.batch.domain is not None
    table = MADE.side.conditions.modality("domain").get_parameter("table.weight")
    vector = table[context.batch.domain[row]]
    return (vector / vector.norm() * 8**0.5)[None]


def content(image: Tensor) -> Tensor:
    discriminator = MADE.side.discriminator
    return (
        discriminator.heads["translation"]
        .out(torch.nn.functional.leaky_relu(discriminator.trunk(Canvas(image))[0], 0.2))
        .tanh()
    )


def translate(image: Tensor, vector: Tensor, latent: Tensor) -> Tensor:
    return MADE.generator(latent[None], Condition(vector, content=content(image))).image


def logit(image: Tensor, vector: Tensor) -> float:
    discriminator = MADE.side.discriminator
    head = discriminator.heads["generation"]
    embedded = discriminator.summary(discriminator.trunk(Canvas(image))) @ head.embed.weight.T
    return float((embedded * (head.direction + vector)).sum() / 8**0.5)


def softplus(x: float) -> float:
    return float(np.logaddexp(0, x))


def differ(context: StepContext, a: int, b: int) -> bool:
    assert context.batch.domain is not None
    return bool(context.batch.domain[a] != context.batch.domain[b])


@torch.no_grad()
def test_the_discriminators_step_has_an_identity_an_adversarial_and_a_penalty_loss() -> None:
    context = discriminator_context(CONFIG, MADE, toy.batch(0, 32))
    assert len(context.pairs) > 6
    translation = task(MADE, "translation")
    own = translation.discriminator_canvases(context)
    found = translation.discriminator_losses(context, discriminator_features(context, submitted=own))
    identity, adversarial, penalty, images = [], [], [], context.original.image
    for number, (row, partner) in enumerate(pairs(context)):
        image, there = images[row : row + 1], domain_vector(context, partner)
        first, second = context.pair_latents[number]
        translated = translate(image, there, first)
        assert torch.allclose(own.image[number], translated[0], atol=1e-5)
        identity.append(float((translate(image, domain_vector(context, row), second) - image).abs().mean()))
        real, fake = logit(context.batch.image[partner : partner + 1], there), logit(translated, there)
        adversarial.append(softplus(fake - real) * differ(context, row, partner))
        near = logit(translated + 0.01 * context.pair_images[number], there)
        penalty.append(((near - fake) / 0.01) ** 2)
    assert 0 < np.count_nonzero(adversarial) < len(adversarial)
    assert found["identity"].item() == pytest.approx(3 * np.mean(identity), rel=1e-4)
    assert found["adversarial"].item() == pytest.approx(np.mean(adversarial), rel=1e-4)
    assert found["penalty"].item() == pytest.approx(np.mean(penalty) / 2, rel=1e-2)


@torch.no_grad()
def test_the_generators_step_has_an_identity_an_adversarial_a_cycle_and_a_class_loss() -> None:
    context = generator_context(CONFIG, MADE, toy.batch(0, 32))
    assert len(context.pairs) > 6
    translation = task(MADE, "translation")
    latent, condition = translation.generator_request(context, context.real_features)
    canvas = MADE.generator(latent, condition)
    own = translation.discriminator_part(context, canvas)
    found = translation.generator_losses(context, task_features(context, context.fake, submitted=own))
    found |= translation.canvas_losses(context, canvas)
    losses: dict[str, list[float]] = {"identity": [], "adversarial": [], "cycle": [], "keep": []}
    discriminator = MADE.side.discriminator
    for number, (row, partner) in enumerate(pairs(context)):
        image = context.original.image[row : row + 1]
        here, there = domain_vector(context, row), domain_vector(context, partner)
        first, second = context.pair_latents[number]
        translated = translate(image, there, first)
        assert own is not None and torch.allclose(own.image[number], translated[0], atol=1e-5)
        losses["identity"].append(float((translate(image, here, second) - image).abs().mean()))
        losses["cycle"].append(float((translate(translated, here, second) - image).abs().mean()))
        real, fake = logit(context.real.image[partner : partner + 1], there), logit(translated, there)
        losses["adversarial"].append(softplus(real - fake) * differ(context, row, partner))
        logits = (
            discriminator.heads["classification"](discriminator.summary(discriminator.trunk(Canvas(translated))))[0]
            .double()
            .numpy()
        )
        known = bool(context.batch.present["class"][row])
        losses["keep"].append((np.logaddexp.reduce(logits) - logits[context.batch.label[row]]) * known)
    factor = {"identity": 3.0, "cycle": 3.0, "adversarial": 1.0, "keep": 0.5}
    expected = {name: factor[name] * float(np.mean(values)) for name, values in losses.items()}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


def test_classes_can_be_the_domains_and_only_pairs_of_two_known_classes_count() -> None:
    config = toy.everything(tasks__translation__domain="class", augment__probability=0.2, batch_size=32)
    made = networks(config)
    context = generator_context(config, made, toy.batch(0, 32))
    differs = task(made, "translation")._differs(context)
    has, label = context.batch.present["class"], context.batch.label
    expected = [bool(has[a] and has[b] and label[a] != label[b]) for a, b in pairs(context)]
    assert differs.tolist() == expected
    assert len(set(expected)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks__translation__side": 16}, r"tasks\.translation\.side=16: .*; possible: 4, 8"),
        (
            {"tasks__translation__domain": "class", "conditions": {"domain": {}}},
            r"tasks\.translation\.domain=class: .*add conditions\.class",
        ),
        ({"tasks__detection__stride": 3}, r"tasks\.detection\.stride=3: .* 8x8; choose a divisor"),
        ({"tasks__alignment__weight": 0}, r"conditions\.image: .*add tasks\.alignment"),
    ],
)
def test_an_invalid_combination_is_an_error_with_its_key_and_the_remedy(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(validate(toy.everything(**changes).model_dump()), toy.CARD)
