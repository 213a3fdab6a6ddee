"""Translation: identity, adversarial, cycle and class losses, pair by pair."""

import numpy as np
import pytest
import torch
from helpers import toy
from helpers.scenes import discriminator_views, networks, scene, task, views
from torch import Tensor

from mtgen.config import validate
from mtgen.errors import ConfigError
from mtgen.models.model import build
from mtgen.schema import Canvas, Condition
from mtgen.tasks.base import StepContext

CONFIG = toy.everything(augment__probability=0.2, batch_size=32, tasks__translation__every=1)
MADE = networks(CONFIG)


def laid(seen: str) -> StepContext:
    laid_out = scene(CONFIG, MADE, toy.batch(0, 32), seen)
    assert len(laid_out.pairs) > 6
    return laid_out


def pairs(laid_out: StepContext) -> list[tuple[int, int]]:
    return [(row, int(laid_out.partner[row])) for row in laid_out.pairs.tolist()]


def domain_vector(laid_out: StepContext, row: int) -> Tensor:
    """`[1,d]` of length sqrt(d): the learned vector of a row's domain."""
    assert laid_out.batch.domain is not None
    table = MADE.side.conditions.modality("domain").get_parameter("table.weight")
    vector = table[laid_out.batch.domain[row]]
    return (vector / vector.norm() * 8**0.5)[None]


def content(image: Tensor) -> Tensor:
    discriminator = MADE.side.discriminator
    return (
        discriminator.heads["translation"]
        .out(torch.nn.functional.leaky_relu(discriminator.trunk(Canvas(image))[0], 0.2))
        .tanh()
    )


def drawn(image: Tensor, vector: Tensor, latent: Tensor) -> Tensor:
    return MADE.generator(latent[None], Condition(vector, content=content(image))).image


def logit(image: Tensor, vector: Tensor) -> float:
    discriminator = MADE.side.discriminator
    head = discriminator.heads["generation"]
    embedded = discriminator.summary(discriminator.trunk(Canvas(image))) @ head.embed.weight.T
    return float((embedded * (head.direction + vector)).sum() / 8**0.5)


def softplus(x: float) -> float:
    return float(np.logaddexp(0, x))


def differ(laid_out: StepContext, a: int, b: int) -> bool:
    assert laid_out.batch.domain is not None
    return bool(laid_out.batch.domain[a] != laid_out.batch.domain[b])


@torch.no_grad()
def test_the_discriminators_step_trains_the_content_to_give_the_image_back_and_tells_translations_from_partners() -> (
    None
):
    laid_out = laid("discriminator")
    translation = task(MADE, "translation")
    own = translation.discriminator_canvases(laid_out)
    found = translation.discriminator_losses(laid_out, _with(laid_out, own))
    identity, adversarial, penalty, images = [], [], [], laid_out.original.image
    for number, (row, partner) in enumerate(pairs(laid_out)):
        image, there = images[row : row + 1], domain_vector(laid_out, partner)
        first, second = laid_out.pair_noise[number]
        translated = drawn(image, there, first)
        assert torch.allclose(own.image[number], translated[0], atol=1e-5)
        identity.append(float((drawn(image, domain_vector(laid_out, row), second) - image).abs().mean()))
        real, fake = logit(laid_out.batch.image[partner : partner + 1], there), logit(translated, there)
        adversarial.append(softplus(fake - real) * differ(laid_out, row, partner))
        near = logit(translated + 0.01 * laid_out.pair_noise_image[number], there)
        penalty.append(((near - fake) / 0.01) ** 2)
    assert 0 < np.count_nonzero(adversarial) < len(adversarial)
    assert found["identity"].item() == pytest.approx(3 * np.mean(identity), rel=1e-4)
    assert found["adversarial"].item() == pytest.approx(np.mean(adversarial), rel=1e-4)
    assert found["penalty"].item() == pytest.approx(np.mean(penalty) / 2, rel=1e-2)


def _with(laid_out: StepContext, own: Canvas) -> object:
    """The views of the discriminator's step, with what the task submitted."""
    seen = discriminator_views(laid_out)
    seen.submitted = laid_out.discriminator.trunk(own)
    return seen


@torch.no_grad()
def test_the_generators_step_is_identity_adversarial_cycle_and_the_class_that_should_stay() -> None:
    laid_out = laid("generator")
    laid_out.real_features = MADE.side.discriminator.trunk(laid_out.real)
    translation = task(MADE, "translation")
    latent, condition = translation.generator_request(laid_out)
    canvas = MADE.generator(latent, condition)
    own = translation.discriminator_part(laid_out, canvas)
    found = translation.generator_losses(laid_out, views(laid_out, laid_out.fake, own=own)) | translation.canvas_losses(
        laid_out, canvas
    )
    losses: dict[str, list[float]] = {"identity": [], "adversarial": [], "cycle": [], "keep": []}
    discriminator = MADE.side.discriminator
    for number, (row, partner) in enumerate(pairs(laid_out)):
        image = laid_out.original.image[row : row + 1]
        here, there = domain_vector(laid_out, row), domain_vector(laid_out, partner)
        first, second = laid_out.pair_noise[number]
        translated = drawn(image, there, first)
        assert own is not None and torch.allclose(own.image[number], translated[0], atol=1e-5)
        losses["identity"].append(float((drawn(image, here, second) - image).abs().mean()))
        losses["cycle"].append(float((drawn(translated, here, second) - image).abs().mean()))
        real, fake = logit(laid_out.real.image[partner : partner + 1], there), logit(translated, there)
        losses["adversarial"].append(softplus(real - fake) * differ(laid_out, row, partner))
        logits = (
            discriminator.heads["classification"](discriminator.summary(discriminator.trunk(Canvas(translated))))[0]
            .double()
            .numpy()
        )
        known = bool(laid_out.batch.present["class"][row])
        losses["keep"].append((np.logaddexp.reduce(logits) - logits[laid_out.batch.label[row]]) * known)
    factor = {"identity": 3.0, "cycle": 3.0, "adversarial": 1.0, "keep": 0.5}
    expected = {name: factor[name] * float(np.mean(values)) for name, values in losses.items()}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


def test_classes_can_be_the_domains_and_only_pairs_of_two_known_ones_count() -> None:
    config = toy.everything(tasks__translation__domain="class", augment__probability=0.2, batch_size=32)
    made = networks(config)
    laid_out = scene(config, made, toy.batch(0, 32), "generator")
    other = task(made, "translation")._other(laid_out)
    has, label = laid_out.batch.present["class"], laid_out.batch.label
    expected = [bool(has[a] and has[b] and label[a] != label[b]) for a, b in pairs(laid_out)]
    assert other.tolist() == expected
    assert len(set(expected)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks__translation__side": 16}, r"tasks\.translation\.side=16: there is no such level; possible: 4, 8"),
        (
            {"tasks__translation__domain": "class", "conditions": {"domain": {}}},
            r"tasks\.translation\.domain=class: .*add conditions\.class",
        ),
        ({"tasks__detection__stride": 3}, r"tasks\.detection\.stride=3: has to divide the resolution, 8x8"),
        ({"tasks__alignment__weight": 0}, r"conditions\.image: .*add tasks\.alignment"),
    ],
)
def test_what_cannot_work_names_its_key_and_the_remedy(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(validate(toy.everything(**changes).model_dump()), toy.CARD)
