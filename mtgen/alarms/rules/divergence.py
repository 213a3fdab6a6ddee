"""Divergence: numbers that are not finite, steps that are skipped because of them, losses that explode."""

from collections import defaultdict, deque
from collections.abc import Iterator
from statistics import median

from mtgen.alarms.base import ALARM_RULES, AlarmRule, Finding, Numbers
from mtgen.config import Config
from mtgen.tracking.journal import NONFINITE_SUFFIX

NETWORK_BY_LOSS_PREFIX = {"loss_d/": "discriminator", "loss_g/": "generator"}

MAX_SKIPPED_STEPS = 10
"""Steps skipped in consecutive rows. The dynamic loss scale of fp16 costs about one in 2,000, and up to eight at the
start."""

EXPLOSION_FACTOR, MAX_FINITE_LOSS = 100.0, 10_000.0
"""A loss has exploded if it exceeds the first and has grown by that factor, or if it exceeds the second. Losses are
means of order 1. The largest one measured in a good run was 450, the first of detection; with learning rates of 3 they
exceed 1e10 after five steps."""

MAX_MEDIAN_ROWS, MIN_MEDIAN_ROWS = 50, 5
"""Most and fewest rows of the median that a loss is compared with."""

HELP = (
    "lower learning rates, a longer train.warmup, a smaller train.clip_factor, a higher tasks.generation.gamma; "
    "in fp16, precision=bf16 or fp32; resume from an earlier checkpoint"
)


@ALARM_RULES.register("divergence")
class Divergence(AlarmRule):
    """Losses are not finite or explode, or steps are skipped because their gradients are not finite."""

    def __init__(self, config: Config) -> None:
        self.max_skipped = min(MAX_SKIPPED_STEPS, config.train.nonfinite_limit)
        self.total: dict[str, float] = defaultdict(float)
        self.recent: dict[str, float] = defaultdict(float)
        self.losses: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MAX_MEDIAN_ROWS))

    def check(self, images: int, numbers: Numbers) -> Iterator[Finding]:
        losses = {name: value for name, value in numbers.items() if name.startswith(tuple(NETWORK_BY_LOSS_PREFIX))}
        if nonfinite := [_loss_title(name) for name in losses if name.endswith(NONFINITE_SUFFIX)]:
            yield Finding("losses that are not finite", f"not finite: {', '.join(nonfinite)}", HELP)
        finite = {name: value for name, value in losses.items() if not name.endswith(NONFINITE_SUFFIX)}
        if exploded := [
            f"{_loss_title(name)} is {value:.3g}" for name, value in finite.items() if self._exploded(name, value)
        ]:
            yield Finding("losses that explode", f"exploded: {', '.join(exploded)}", HELP)
        if skipped := [text for name in NETWORK_BY_LOSS_PREFIX.values() if (text := self._skipped(name, numbers))]:
            tasks = dict.fromkeys(name.partition("/nonfinite_")[2] for name in numbers if "/nonfinite_" in name)
            first = f", first in {', '.join(tasks)}" if tasks else ""
            yield Finding(
                "steps left out", f"skipped because gradients were not finite{first}: {' and '.join(skipped)}", HELP
            )

    def _skipped(self, network: str, numbers: Numbers) -> str:
        """The number of steps skipped in the latest consecutive rows; empty where there are few."""
        if (total := numbers.get(f"gradient/{network}_nonfinite_steps")) is None:
            return ""
        new, self.total[network] = total - self.total[network], total
        self.recent[network] = self.recent[network] + new if new > 0 else 0.0
        recent = self.recent[network]
        return f"{recent:.0f} steps of the {network}" if recent >= self.max_skipped else ""

    def _exploded(self, name: str, value: float) -> bool:
        earlier = self.losses[name]
        has_grown = len(earlier) >= MIN_MEDIAN_ROWS and value > EXPLOSION_FACTOR * max(1.0, median(earlier))
        earlier.append(value)
        return has_grown or value > MAX_FINITE_LOSS


def _loss_title(name: str) -> str:
    """`loss_d/generation_penalty` -> "the discriminator's generation penalty"."""
    group, _, loss = name.removesuffix(NONFINITE_SUFFIX).partition("/")
    return f"the {NETWORK_BY_LOSS_PREFIX[group + '/']}'s {loss.replace('_', ' ')}"
