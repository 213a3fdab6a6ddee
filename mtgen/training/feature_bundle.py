"""Tensors over the same rows, cut into named sections, in the form in which a gradient gate takes them."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mtgen.balancing.gramian import RowSlice
from mtgen.schema import Canvas
from mtgen.tasks.base import TaskFeatures

IMAGE_ONLY = "image-only rows"
"""Section of the step's rows whose labels the discriminator does not see."""

REMAINING = "remaining rows"
"""Section of all other rows of the step."""


@dataclass(frozen=True)
class FeatureBundle:
    """Several tensors over the same R rows, cut into sections of consecutive rows; pieces of them pass through a gate.

    Attributes:
        tensors: name -> `[R,...]`.
        sections: name -> number of rows, in order; together they are all R rows.
        order: the pieces that are shared, as (section, tensor), in the order in which the gate gets them.
    """

    tensors: Mapping[Hashable, Tensor]
    sections: Mapping[str, int]
    order: Sequence[tuple[str, Hashable]]

    @staticmethod
    def of_levels(
        levels: Sequence[Tensor], image_only: int, remaining: int, submitted: Mapping[str, int]
    ) -> "FeatureBundle":
        """Bundle the trunk's features: all levels of image-only and submitted rows, the lowest level of the others.

        Args:
            levels: `[R,C,h,w]` each, lowest resolution first.
            image_only: number of the step's image-only rows, which come first.
            remaining: number of the step's other rows, which come next.
            submitted: task -> number of rows of the canvases that it submitted, which come last.
        """
        sections = {IMAGE_ONLY: image_only, REMAINING: remaining, **submitted}
        order = [(section, level) for section in (IMAGE_ONLY, *submitted) for level in range(len(levels))]
        return FeatureBundle(dict(enumerate(levels)), sections, [*order, (REMAINING, 0)])

    @staticmethod
    def of_canvas(canvas: Canvas, sections: Mapping[str, int]) -> "FeatureBundle":
        """Bundle what was generated in one forward.

        Args:
            canvas: R rows.
            sections: who requested rows -> how many, in order.
        """
        parts = {"image": canvas.image, "mask_logits": canvas.mask_logits, "box_logits": canvas.box_logits}
        tensors: dict[Hashable, Tensor] = {name: part for name, part in parts.items() if part is not None}
        return FeatureBundle(tensors, sections, [(section, name) for name in tensors for section in sections])

    def pack(self) -> tuple[list[Tensor], list[RowSlice]]:
        """Return a gate's arguments: the shared pieces, and which rows of which tensor each of them holds."""
        sizes = list(self.sections.values())
        pieces = {
            (section, name): piece
            for name, tensor in self.tensors.items()
            for section, piece in zip(self.sections, tensor.split(sizes), strict=True)
        }
        group = {name: number for number, name in enumerate(self.tensors)}
        first = {section: sum(sizes[:number]) for number, section in enumerate(self.sections)}
        slices = [RowSlice(group[name], first[section]) for section, name in self.order]
        return [pieces[key] for key in self.order], slices

    def unpack(self, views: Sequence[Tensor]) -> dict[str, dict[Hashable, Tensor]]:
        """Return one task's views of the packed pieces, by section and tensor."""
        found: dict[str, dict[Hashable, Tensor]] = {section: {} for section in self.sections}
        for (section, name), view in zip(self.order, views, strict=True):
            found[section][name] = view
        return found

    def task_features(self, views: Sequence[Tensor], task: str) -> TaskFeatures:
        """Return a task's views of a bundle of levels, with what it submitted itself."""
        parts = self.unpack(views)
        return TaskFeatures(list(parts[IMAGE_ONLY].values()), parts[REMAINING][0], list(parts.get(task, {}).values()))

    def canvas(self, views: Sequence[Tensor], section: str) -> Canvas:
        """Return a section's rows of a bundle of canvas components."""
        parts = self.unpack(views)[section]
        return Canvas.of_logits(parts["image"], parts.get("mask_logits"), parts.get("box_logits"))
