"""Alignment: a contrastive loss with several positives over the joint batch, and mismatched pairs."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import toy
from helpers.scenes import discriminator_views, networks, scene, task, unlabeled, views
from torch import Tensor

from mtgen.schema import Batch, Canvas
from mtgen.tasks.alignment import contrast
from mtgen.tasks.base import StepContext

CONFIG = toy.everything(augment__probability=0.2)
MADE = networks(CONFIG)
ALIGNED = [name for name in CONFIG.conditions if name in ("class", "labels", "caption", "sound")]


def double(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def alike(batch: Batch, a: int, b: int) -> bool:
    """The same sample; else the first of caption, labels and class that both have decides."""
    assert batch.caption is not None and batch.labels is not None
    for component, value in (("caption", batch.caption), ("boxes", batch.labels), ("class", batch.label)):
        if batch.present[component][a] and batch.present[component][b]:
            return a == b or torch.equal(value[a], value[b])
    return a == b


def rows_with(laid_out: StepContext, *components: str) -> list[int]:
    """The reading rows that have them all."""
    return [
        row
        for row in range(laid_out.reading)
        if all(laid_out.batch.present[component][row] for component in components)
    ]


def contrasted(laid_out: StepContext, image: np.ndarray, other: np.ndarray, *components: str) -> float:
    """The mean over samples with the components of -log softmax at their positives, both ways."""
    sharpness = np.exp(double(MADE.side.discriminator.heads["alignment"].sharpness))
    rows = rows_with(laid_out, *components)
    losses, several = [], 0
    for row in rows:
        positive = [alike(laid_out.batch, row, column) for column in rows]
        several += sum(positive) > 1
        for query, keys in ((image[row], other), (other[row], image)):
            logits = np.array([float(sharpness[0] * query @ keys[column]) for column in rows])
            log_share = logits - np.logaddexp.reduce(logits)
            losses.append(-np.mean(log_share[positive]))
    assert several
    return float(np.mean(losses))


@pytest.mark.parametrize(
    ("name", "component"), [("class", "class"), ("labels", "boxes"), ("caption", "caption"), ("sound", "sound")]
)
def test_images_and_what_they_are_asked_for_by_find_each_other_among_all(name: str, component: str) -> None:
    laid_out = scene(CONFIG, MADE, toy.batch(0, 40))
    found = task(MADE, "alignment").discriminator_losses(laid_out, discriminator_views(laid_out))
    embed = MADE.side.discriminator.heads["alignment"].embed
    image = unit(
        double(embed(MADE.side.discriminator.summary(MADE.side.discriminator.trunk(Canvas(laid_out.batch.image)))))
    )
    other = unit(double(laid_out.encoded[name].pooled))
    assert found[name].item() == pytest.approx(contrasted(laid_out, image, other, component), rel=1e-4)


@pytest.mark.parametrize(
    ("one", "component", "other", "rival"),
    [
        ("class", "class", "sound", "sound"),
        ("labels", "boxes", "sound", "sound"),
        ("class", "class", "labels", "boxes"),
    ],
)
def test_what_images_are_asked_for_by_finds_each_other_without_the_image(
    one: str, component: str, other: str, rival: str
) -> None:
    """Over the samples that have both, as a share of those that have the rarer."""
    laid_out = scene(CONFIG, MADE, toy.batch(0, 40))
    found = task(MADE, "alignment").discriminator_losses(laid_out, discriminator_views(laid_out))
    both, rarer = (
        rows_with(laid_out, component, rival),
        min(len(rows_with(laid_out, part)) for part in (component, rival)),
    )
    assert 0 < len(both) <= rarer
    vectors = [unit(double(laid_out.encoded[name].pooled)) for name in (one, other)]
    expected = 0.5 * contrasted(laid_out, *vectors, component, rival) * len(both) / rarer
    assert found[f"{one}_{other}"].item() == pytest.approx(expected, rel=1e-4)


def test_modalities_find_each_other_only_where_that_has_a_weight() -> None:
    config = toy.everything(augment__probability=0.2, tasks__alignment__between=0.0)
    made = networks(config)
    laid_out = scene(config, made)
    assert task(made, "alignment").discriminator_losses(laid_out, discriminator_views(laid_out)).keys() == {
        *ALIGNED,
        "mismatched",
    }


def test_what_every_sample_has_and_what_is_the_image_itself_are_not_aligned() -> None:
    laid_out = scene(CONFIG, MADE)
    found = task(MADE, "alignment").discriminator_losses(laid_out, discriminator_views(laid_out))
    assert found.keys() == {*ALIGNED, "mismatched", *(f"{one}_{other}" for one, other in combinations(ALIGNED, 2))}


def test_contrast_of_equal_logits_is_the_logarithm_of_how_many_there_are() -> None:
    there = torch.tensor([True, True, False, True])
    losses = contrast(torch.zeros(4, 4), torch.eye(4, dtype=torch.bool), there)
    assert losses.tolist() == pytest.approx([np.log(3), np.log(3), 0, np.log(3)])


def test_contrast_without_any_row_is_nothing_and_has_no_gradient() -> None:
    logits = torch.randn(3, 3, requires_grad=True)
    losses = contrast(logits, torch.eye(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool))
    losses.sum().backward()
    assert logits.grad is not None
    assert not losses.any() and not logits.grad.any()


def test_a_real_image_should_be_likelier_with_its_own_condition_than_with_its_partners() -> None:
    laid_out = scene(CONFIG, MADE)
    found = task(MADE, "alignment").discriminator_losses(laid_out, discriminator_views(laid_out))["mismatched"]
    head, discriminator = MADE.side.discriminator.heads["generation"], MADE.side.discriminator
    embedded = double(discriminator.summary(discriminator.trunk(laid_out.real))) @ double(head.embed.weight).T  # type: ignore[union-attr,arg-type]
    pooled, losses = double(laid_out.condition.pooled), []
    for row in range(16):
        partner = int(laid_out.partner[row])
        wrong, right = (embedded[row] @ (double(head.direction) + pooled[of]) / np.sqrt(8) for of in (partner, row))  # type: ignore[arg-type]
        losses.append(np.logaddexp(0, wrong - right) if np.any(pooled[row] != pooled[partner]) else 0.0)
    assert 0 < np.count_nonzero(losses)
    assert found.item() == pytest.approx(0.5 * float(np.mean(losses)), rel=1e-4)


def test_pairs_that_ask_for_the_same_are_not_mismatched() -> None:
    laid_out = scene(CONFIG, MADE)
    laid_out.condition = replace(laid_out.condition, pooled=laid_out.condition.pooled[:1].expand(16, -1))
    assert (
        task(MADE, "alignment").discriminator_losses(laid_out, discriminator_views(laid_out))["mismatched"].item() == 0
    )


def test_generated_images_should_lie_near_what_was_asked_for() -> None:
    laid_out = scene(CONFIG, MADE, seen="generator")
    found = task(MADE, "alignment").generator_losses(laid_out, views(laid_out, laid_out.fake))["agreement"]
    embed, discriminator = MADE.side.discriminator.heads["alignment"], MADE.side.discriminator
    image = unit(double(embed(discriminator.summary(discriminator.trunk(Canvas(laid_out.fake.image))))))
    wanted = unit(double(laid_out.condition.pooled))
    away = [(1 - image[row] @ wanted[row]) * bool(laid_out.is_conditioned[row]) for row in range(laid_out.reading)]
    assert found.item() == pytest.approx(0.1 * float(np.mean(away)), rel=1e-4)


def aligned(lacking: list[list[str]]) -> list[dict[str, Tensor]]:
    """The losses of one batch and their gradients, averaged over the workers as engines do; once for each list of what it lacks."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    results = []
    for out in lacking:
        whole = unlabeled(toy.batch(0, 32), *out) if out else toy.batch(0, 32)
        made, size = networks(CONFIG), 32 // world
        laid_out = scene(CONFIG, made, whole.rows(slice(rank * size, (rank + 1) * size)))
        found = task(made, "alignment").discriminator_losses(laid_out, discriminator_views(laid_out))
        values = {name: loss.detach().clone() for name, loss in found.items()}
        sum(found.values(), torch.zeros(())).backward()
        values |= {name: p.grad.clone() for name, p in made.side.named_parameters() if p.grad is not None}
        for value in values.values():
            if world > 1:
                dist.all_reduce(value)
                value /= world
        results.append(values)
    return results


def test_two_workers_with_unequal_numbers_of_labels_contrast_as_one(tmp_path: Path) -> None:
    lacking = [[], ["caption", "boxes"]]  # by which samples are told to be alike, before the class
    counts = toy.batch(0, 32).present["caption"]
    assert counts[:16].sum() != counts[16:].sum()
    for alone, first, second in zip(aligned(lacking), *toy.spawn(2, aligned, tmp_path, lacking), strict=True):
        assert first.keys() == second.keys() == alone.keys()
        for name, value in alone.items():
            assert float((first[name] - value).abs().max()) < 2e-4 * max(float(value.abs().max()), 1e-3), name
            assert torch.equal(first[name], second[name])


def test_the_factor_of_the_cosines_is_bounded() -> None:
    made: Any = networks(CONFIG)
    head = made.side.discriminator.heads["alignment"]
    head.sharpness.data.fill_(50.0)
    laid_out = scene(CONFIG, made)
    found = task(made, "alignment").discriminator_losses(laid_out, discriminator_views(laid_out))
    assert all(bool(torch.isfinite(loss)) and loss < 250 for loss in found.values())
