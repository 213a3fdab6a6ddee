"""How far a run is, in images."""

from dataclasses import dataclass

FULL_ROWS = 5_000
"""Rows of metrics that a run writes every `train.log_every` images. After that, the interval doubles each time that the
run doubles: a run of 300,000 intervals has 20,000 rows, and one of 24 million 36,000."""


@dataclass
class RunProgress:
    """Images and steps of a run so far; the same on all workers.

    Attributes:
        total: images at which the run ends.
        images: samples seen since the start of the run, over all workers; also the position in the data order.
        steps: steps since the start of the run.
        previous_images: `images` before the last step.
    """

    total: int
    images: int = 0
    steps: int = 0
    previous_images: int = 0

    @property
    def finished(self) -> bool:
        """Whether the run has seen all its images."""
        return self.images >= self.total

    def advance(self, images: int) -> None:
        """Count one step over a global batch of `images`."""
        self.previous_images = self.images
        self.images += images
        self.steps += 1

    def passed(self, every: int) -> bool:
        """Whether the last step reached or passed a multiple of `every` images."""
        return self.previous_images // every != self.images // every

    def due(self, every: int) -> bool:
        """Whether something that happens every `every` images, and at the end, happens after this step."""
        return self.passed(every) or self.finished

    def row_due(self, every: int) -> bool:
        """Whether a row of metrics is written after this step: every `every` images, and less often in a long run."""
        every = max(every, self.images - self.previous_images)
        doublings = (self.images // every // FULL_ROWS).bit_length()
        return self.due(every * 2**doublings)
