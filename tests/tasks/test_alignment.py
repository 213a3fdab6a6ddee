"""Alignment: contrastive losses with several positives over the joint batch, and mismatched pairs."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import toy
from helpers.step_contexts import (
    discriminator_context,
    discriminator_features,
    generator_context,
    networks,
    task,
    task_features,
    unlabeled,
)
from torch import Tensor

from mtgen.schema import Batch, Canvas
from mtgen.tasks.alignment import RowFacts, RowsAndColumns, contrast
from mtgen.tasks.base import StepContext
from mtgen.utils.distributed_math import gather_rows

CONFIG = toy.everything(augment__probability=0.2)
MADE = networks(CONFIG)
ALIGNED = [name for name in CONFIG.conditions if name in ("class", "labels", "caption", "sound")]


def double(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def are_positives(batch: Batch, a: int, b: int) -> bool:
    """Whether the samples are the same; else the first of caption, labels and class that both have decides."""
    assert batch.caption is not None and batch.labels is not None
    for component, value in (("caption", batch.caption), ("tags", batch.labels), ("class", batch.label)):
        if batch.present[component][a] and batch.present[component][b]:
            return a == b or torch.equal(value[a], value[b])
    return a == b


def rows_with(context: StepContext, *components: str) -> list[int]:
    """The image-only rows that have all components."""
    return [
        row
        for row in range(context.num_image_only)
        if all(context.batch.present[component][row] for component in components)
    ]


def contrasted(context: StepContext, image: np.ndarray, other: np.ndarray, *components: str) -> float:
    """The mean over samples with the components of -log softmax at their positives, in both directions."""
    sharpness = np.exp(double(MADE.side.discriminator.heads["alignment"].sharpness))
    rows = rows_with(context, *components)
    losses, several = [], 0
    for row in rows:
        positive = [are_positives(context.batch, row, column) for column in rows]
        several += sum(positive) > 1
        for query, keys in ((image[row], other), (other[row], image)):
            logits = np.array([float(sharpness[0] * query @ keys[column]) for column in rows])
            log_softmax = logits - np.logaddexp.reduce(logits)
            losses.append(-np.mean(log_softmax[positive]))
    assert several
    return float(np.mean(losses))


@pytest.mark.parametrize(
    ("name", "component"), [("class", "class"), ("labels", "tags"), ("caption", "caption"), ("sound", "sound")]
)
def test_images_are_contrasted_with_each_modality_over_the_batch(name: str, component: str) -> None:
    context = discriminator_context(CONFIG, MADE, toy.batch(0, 40))
    found = task(MADE, "alignment").discriminator_losses(context, discriminator_features(context))
    embed = MADE.side.discriminator.heads["alignment"].embed
    image = unit(
        double(embed(MADE.side.discriminator.summary(MADE.side.discriminator.trunk(Canvas(context.batch.image)))))
    )
    other = unit(double(context.encoded[name].pooled))
    assert found[name].item() == pytest.approx(contrasted(context, image, other, component), rel=1e-4)


@pytest.mark.parametrize(
    ("one", "component", "other", "rival"),
    [
        ("class", "class", "sound", "sound"),
        ("labels", "tags", "sound", "sound"),
        ("class", "class", "labels", "tags"),
    ],
)
def test_modalities_are_contrasted_with_each_other_without_the_image(
    one: str, component: str, other: str, rival: str
) -> None:
    """Over the samples that have both, relative to the number of those that have the rarer."""
    context = discriminator_context(CONFIG, MADE, toy.batch(0, 40))
    found = task(MADE, "alignment").discriminator_losses(context, discriminator_features(context))
    both, rarer = (
        rows_with(context, component, rival),
        min(len(rows_with(context, part)) for part in (component, rival)),
    )
    assert 0 < len(both) <= rarer
    vectors = [unit(double(context.encoded[name].pooled)) for name in (one, other)]
    expected = 0.5 * contrasted(context, *vectors, component, rival) * len(both) / rarer
    assert found[f"{one}_{other}"].item() == pytest.approx(expected, rel=1e-4)


def test_without_a_weight_modalities_are_not_contrasted_with_each_other() -> None:
    config = toy.everything(augment__probability=0.2, tasks__alignment__between=0.0)
    made = networks(config)
    context = discriminator_context(config, made)
    assert task(made, "alignment").discriminator_losses(context, discriminator_features(context)).keys() == {
        *ALIGNED,
        "mismatched",
    }


def test_the_domain_and_the_image_condition_are_not_aligned() -> None:
    context = discriminator_context(CONFIG, MADE)
    found = task(MADE, "alignment").discriminator_losses(context, discriminator_features(context))
    assert found.keys() == {*ALIGNED, "mismatched", *(f"{one}_{other}" for one, other in combinations(ALIGNED, 2))}


def test_contrast_of_equal_logits_is_the_logarithm_of_their_number() -> None:
    present = torch.tensor([True, True, False, True])
    losses = contrast(torch.zeros(4, 4), torch.eye(4, dtype=torch.bool), present, present)
    assert losses.tolist() == pytest.approx([np.log(3), np.log(3), 0, np.log(3)])


def test_contrast_without_any_row_is_0_and_has_no_gradient() -> None:
    logits, none = torch.randn(3, 3, requires_grad=True), torch.zeros(3, dtype=torch.bool)
    losses = contrast(logits, torch.eye(3, dtype=torch.bool), none, none)
    losses.sum().backward()
    assert logits.grad is not None
    assert not losses.any() and not logits.grad.any()


def test_a_real_image_should_score_higher_with_its_own_condition_than_with_its_partners() -> None:
    context = discriminator_context(CONFIG, MADE)
    found = task(MADE, "alignment").discriminator_losses(context, discriminator_features(context))["mismatched"]
    head, discriminator = MADE.side.discriminator.heads["generation"], MADE.side.discriminator
    embedded = double(discriminator.summary(discriminator.trunk(context.real))) @ double(head.embed.weight).T  # type: ignore[union-attr,arg-type]
    pooled, losses = double(context.condition.pooled), []
    for row in range(16):
        partner = int(context.partner[row])
        wrong, right = (embedded[row] @ (double(head.direction) + pooled[of]) / np.sqrt(8) for of in (partner, row))  # type: ignore[arg-type]
        asked = any(given[partner] for name, given in context.prompt.given.items() if name != "domain")
        domain = context.prompt.values["domain"]
        other_domain = bool(context.prompt.given["domain"][partner]) and domain[row] != domain[partner]
        holds = asked and are_positives(context.batch, row, partner) and not other_domain
        differs = bool(np.any(pooled[row] != pooled[partner])) and not holds
        losses.append(np.logaddexp(0, wrong - right) if differs else 0.0)
    assert 0 < np.count_nonzero(losses)
    assert found.item() == pytest.approx(0.5 * float(np.mean(losses)), rel=1e-4)


def test_rows_of_which_the_partners_condition_holds_are_not_mismatched() -> None:
    batch = toy.batch(0, 16)
    assert batch.domain is not None
    present = {name: torch.full_like(has, name == "class") for name, has in batch.present.items()}
    same = {"label": torch.ones_like(batch.label), "domain": torch.zeros_like(batch.domain)}
    context = discriminator_context(CONFIG, MADE, replace(batch, **same, present=present, step_present=present))
    for name, given in context.prompt.given.items():
        given.fill_(name == "class")
    context = replace(context, condition=MADE.side.conditions(context.prompt))
    context.condition.pooled[::3] += 1  # another modality asks for the same class
    losses = task(MADE, "alignment").discriminator_losses(context, discriminator_features(context))
    assert losses["mismatched"].item() == 0


def test_a_scale_beyond_its_bound_counts_as_the_bound_and_still_has_a_gradient() -> None:
    made = networks(CONFIG)
    made.side.discriminator.heads["alignment"].sharpness.data.fill_(9.0)  # type: ignore[union-attr, operator]
    context = discriminator_context(CONFIG, made)
    scale = task(made, "alignment")._log_scale(context)
    assert scale.item() == pytest.approx(np.log(100))
    assert torch.autograd.grad(scale.sum(), made.side.discriminator.heads["alignment"].sharpness)[0].item() == 1  # type: ignore[arg-type]


def test_generated_images_should_be_embedded_near_their_conditions() -> None:
    context = generator_context(CONFIG, MADE)
    found = task(MADE, "alignment").generator_losses(context, task_features(context, context.fake))["agreement"]
    embed, discriminator = MADE.side.discriminator.heads["alignment"], MADE.side.discriminator
    image = unit(double(embed(discriminator.summary(discriminator.trunk(Canvas(context.fake.image))))))
    condition = unit(double(context.condition.pooled))
    distance = [
        (1 - image[row] @ condition[row]) * bool(context.is_conditioned[row]) for row in range(context.num_image_only)
    ]
    assert found.item() == pytest.approx(0.1 * float(np.mean(distance)), rel=1e-4)


def over_workers(value: Tensor) -> Tensor:
    """The mean over workers, as the engine averages gradients and the log averages losses."""
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def losses_without(missing: list[list[str]]) -> list[dict[str, Tensor]]:
    """The losses of one batch and their gradients, averaged over workers, for each list of missing components."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    results = []
    for components in missing:
        whole = unlabeled(toy.batch(0, 32), *components) if components else toy.batch(0, 32)
        made, size = networks(CONFIG), 32 // world
        context = discriminator_context(CONFIG, made, whole.rows(slice(rank * size, (rank + 1) * size)))
        found = task(made, "alignment").discriminator_losses(context, discriminator_features(context))
        values = {name: loss.detach().clone() for name, loss in found.items()}
        sum(found.values(), torch.zeros(())).backward()
        values |= {name: p.grad.clone() for name, p in made.side.named_parameters() if p.grad is not None}
        results.append({name: over_workers(value) for name, value in values.items()})
    return results


def test_two_workers_with_unequal_numbers_of_labels_contrast_as_one(tmp_path: Path) -> None:
    missing = [[], ["caption", "boxes"]]  # they decide which samples are positives, before the class
    counts = toy.batch(0, 32).present["caption"]
    assert counts[:16].sum() != counts[16:].sum()
    for alone, first, second in zip(
        losses_without(missing), *toy.spawn(2, losses_without, tmp_path, missing), strict=True
    ):
        assert first.keys() == second.keys() == alone.keys()
        for name, value in alone.items():
            assert float((first[name] - value).abs().max()) < 2e-4 * max(float(value.abs().max()), 1e-3), name
            assert torch.equal(first[name], second[name])


def contrasts(random: torch.Generator) -> tuple[dict[str, Tensor], RowFacts, Tensor]:
    """Embeddings of 16 samples, which of them have a caption and a class, and the factor of their cosines."""

    def drawn(*values: Any) -> Tensor:
        return torch.randn(*values, generator=random, dtype=torch.float64)

    vectors = {name: F.normalize(drawn(16, 5), dim=1) for name in ("image", "caption", "class")}
    takes_part = {name: drawn(16) > -0.5 for name in ("caption", "class")}
    conditions = {name: (drawn(16) > -0.5, torch.randint(4, (16,), generator=random)) for name in ("caption", "class")}
    return vectors, RowFacts(takes_part, conditions), drawn(1)


def whole_matrix_losses(vectors: dict[str, Tensor], facts: RowFacts, scale: Tensor) -> Tensor:
    """The losses over all pairs, of which one process holds the whole matrices, by their definition."""
    n = len(vectors["image"])
    positive = torch.eye(n, dtype=torch.bool)
    undecided = ~positive
    for present, value in facts.conditions.values():
        both = present[:, None] & present & undecided
        positive, undecided = positive | (both & (value[:, None] == value)), undecided & ~both
    total = torch.zeros((), dtype=torch.float64)
    for one, other in combinations(vectors, 2):
        present = torch.stack([facts.takes_part[name] for name in (one, other) if name != "image"]).all(0)
        for query, key in ((one, other), (other, one)):
            kept = scale * (vectors[query] @ vectors[key].T)[present][:, present]
            pairs = positive[present][:, present]
            total = total - ((kept.log_softmax(1) * pairs).sum(1) / pairs.sum(1)).sum()
    return total


def losses_by_rows() -> dict[str, Tensor]:
    """The losses of this worker's rows and their gradients, joined over the workers."""
    world, rank = dist.get_world_size(), dist.get_rank()
    vectors, facts, scale = contrasts(torch.Generator().manual_seed(0))
    mine = slice(rank * 16 // world, (rank + 1) * 16 // world)
    own = {name: rows[mine].requires_grad_() for name, rows in vectors.items()}
    part = RowFacts(
        {name: rows[mine] for name, rows in facts.takes_part.items()},
        {name: (rows[mine], value[mine]) for name, (rows, value) in facts.conditions.items()},
    )
    scale.requires_grad_()
    pairs = RowsAndColumns(own, part)
    found = [pairs.contrast(scale, *way) for a, b in combinations(own, 2) for way in ((a, b), (b, a))]
    assert all(rows.shape == (16 // world,) for rows in found)
    assert pairs.positive.shape == (16 // world, 16)
    loss = torch.stack([rows.sum() for rows in found]).sum()
    loss.backward()
    assert scale.grad is not None
    result = {"loss": loss.detach(), "scale": scale.grad}
    for value in result.values():
        dist.all_reduce(value)
    for name, rows in own.items():
        assert rows.grad is not None
        result[name] = gather_rows(rows.grad)
    return result


def losses_of_four_and_of_two(folder: str) -> list[dict[str, Tensor]]:
    """The losses and gradients of this worker as one of four, and then as one of two."""
    found, number = [losses_by_rows()], dist.get_rank()
    dist.destroy_process_group()
    store = dist.FileStore(f"{folder}/two-{number // 2}", 2)
    dist.init_process_group("gloo", store=store, rank=number % 2, world_size=2)
    return [*found, losses_by_rows()]


def test_rows_of_several_workers_give_the_losses_and_gradients_of_the_whole_matrices(
    tmp_path: Path, process_group: None
) -> None:
    vectors, facts, scale = contrasts(torch.Generator().manual_seed(0))
    leaves = {**vectors, "scale": scale}
    for leaf in leaves.values():
        leaf.requires_grad_()
    loss = whole_matrix_losses(vectors, facts, scale)
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    several = toy.spawn(4, losses_of_four_and_of_two, tmp_path, str(tmp_path))
    for found in [losses_by_rows(), *(result for worker in several for result in worker)]:
        assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
        for name, gradient in gradients.items():
            assert float((found[name] - gradient).abs().max()) < 1e-6 * float(gradient.abs().max()), name


def test_the_factor_of_the_cosines_is_bounded() -> None:
    made: Any = networks(CONFIG)
    head = made.side.discriminator.heads["alignment"]
    head.sharpness.data.fill_(50.0)
    context = discriminator_context(CONFIG, made)
    found = task(made, "alignment").discriminator_losses(context, discriminator_features(context))
    assert all(bool(torch.isfinite(loss)) and loss < 250 for loss in found.values())
