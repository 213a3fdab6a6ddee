"""Divergence: numbers that are not finite, steps that are left out for it, losses that explode."""

from collections import defaultdict, deque
from collections.abc import Iterator
from statistics import median

from mtgen.alarms.base import ALARM_RULES, AlarmRule, Finding, Numbers
from mtgen.config import Config
from mtgen.tracking.journal import NONFINITE_SUFFIX

NETWORK_BY_LOSS_PREFIX = {"loss_d/": "discriminator", "loss_g/": "generator"}

MAX_SKIPPED_STEPS = 10
"""Steps left out in rows that follow each other. A dynamic loss scale costs fp16 about one in 2,000, and up to eight when it begins."""

EXPLOSION_FACTOR, MAX_FINITE_LOSS = 100.0, 10_000.0
"""A loss beyond the first that has grown so many times over, or beyond the second at all, has exploded: losses are means of order 1, the
largest one measured in a run that went well was detection's first, 450; with learning rates of 3 they are beyond 1e10 after five steps."""

MAX_MEDIAN_ROWS, MIN_MEDIAN_ROWS = 50, 5
"""Rows whose median a loss is compared with, at most and at least."""

HELP = (
    "lower learning rates, a longer train.warmup, a smaller train.clip_factor, a higher tasks.generation.gamma; in fp16, precision=bf16 or fp32; "
    "go on from a checkpoint from before it"
)


@ALARM_RULES.register("divergence")
class Divergence(AlarmRule):
    """Losses that are not finite or explode, and steps that are left out because their gradient is not finite."""

    def __init__(self, config: Config) -> None:
        self.many = min(MAX_SKIPPED_STEPS, config.train.nonfinite_limit)
        self.total: dict[str, float] = defaultdict(float)
        self.lately: dict[str, float] = defaultdict(float)
        self.losses: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MAX_MEDIAN_ROWS))

    def check(self, images: int, numbers: Numbers) -> Iterator[Finding]:
        losses = {name: value for name, value in numbers.items() if name.startswith(tuple(NETWORK_BY_LOSS_PREFIX))}
        if lost := [_words(name) for name in losses if name.endswith(NONFINITE_SUFFIX)]:
            yield Finding("losses that are not finite", f"not finite: {', '.join(lost)}", HELP)
        finite = {name: value for name, value in losses.items() if not name.endswith(NONFINITE_SUFFIX)}
        if exploded := [
            f"{_words(name)} is {value:.3g}" for name, value in finite.items() if self._exploded(name, value)
        ]:
            yield Finding("losses that explode", f"exploded: {', '.join(exploded)}", HELP)
        if left_out := [text for side in NETWORK_BY_LOSS_PREFIX.values() if (text := self._left_out(side, numbers))]:
            tasks = dict.fromkeys(name.partition("/nonfinite_")[2] for name in numbers if "/nonfinite_" in name)
            first = f", first in those of {', '.join(tasks)}" if tasks else ""
            yield Finding(
                "steps left out", f"left out, since gradients were not finite{first}: {' and '.join(left_out)}", HELP
            )

    def _left_out(self, side: str, numbers: Numbers) -> str:
        """How many steps, where they are many."""
        if (total := numbers.get(f"gradient/{side}_nonfinite_steps")) is None:
            return ""
        more, self.total[side] = total - self.total[side], total
        self.lately[side] = self.lately[side] + more if more > 0 else 0.0
        return f"{self.lately[side]:.0f} steps of the {side}" if self.lately[side] >= self.many else ""

    def _exploded(self, name: str, value: float) -> bool:
        earlier = self.losses[name]
        grown = len(earlier) >= MIN_MEDIAN_ROWS and value > max(EXPLOSION_FACTOR, EXPLOSION_FACTOR * median(earlier))
        earlier.append(value)
        return grown or value > MAX_FINITE_LOSS


def _words(name: str) -> str:
    """`loss_d/generation_penalty` in words."""
    group, _, loss = name.removesuffix(NONFINITE_SUFFIX).partition("/")
    return f"the {NETWORK_BY_LOSS_PREFIX[group + '/']}'s {loss.replace('_', ' ')}"
