"""Divergence: numbers that are not finite, steps that are left out for it, losses that explode."""

from collections import defaultdict, deque
from collections.abc import Iterator
from statistics import median

from mtgen.alarms.rule import RULES, Finding, Numbers, Rule
from mtgen.config import Config
from mtgen.journal import NONFINITE

SIDES = {"loss_d": "discriminator", "loss_g": "generator"}

SKIPPED = 10
"""Steps left out between two rows. A dynamic loss scale costs fp16 about one in 2,000, and up to eight when it begins."""

HUGE, HUGE_ANYWAY = 100.0, 10_000.0
"""A loss beyond the first that has grown so many times over, or beyond the second at all, has exploded: losses are means of order 1, the
largest one measured in a run that went well was detection's first, 450."""

REMEMBERED = 50
"""Rows whose median a loss is compared with."""

HELP = (
    "lower learning rates, a longer train.warmup, a higher tasks.generation.gamma; in half precision, precision=bf16 or fp32; "
    "go on from a checkpoint from before it"
)


@RULES.register("divergence")
class Divergence(Rule):
    """Losses and gradients that are not finite, and losses that explode."""

    def __init__(self, config: Config) -> None:
        self.many = min(SKIPPED, config.train.nonfinite_limit)
        self.skipped: dict[str, float] = {}
        self.losses: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    def look(self, images: int, numbers: Numbers) -> Iterator[Finding]:
        for group, side in SIDES.items():
            named = [name.partition("/")[2] for name in numbers if name.startswith(f"{group}/")]
            if lost := [_words(name.removesuffix(NONFINITE)) for name in named if name.endswith(NONFINITE)]:
                yield Finding(f"{side} not finite", f"not finite among the {side}'s losses: {', '.join(lost)}", HELP)
            yield from self._left_out(side, numbers)
            losses = {name: numbers[f"{group}/{name}"] for name in named if not name.endswith(NONFINITE)}
            if exploded := [
                f"{_words(name)} {value:.3g}{then}" for name, value in losses.items() if (then := self._exploded(group + name, value))
            ]:
                yield Finding(f"{side} exploded", f"exploded among the {side}'s losses: {', '.join(exploded)}", HELP)

    def _left_out(self, side: str, numbers: Numbers) -> Iterator[Finding]:
        total = numbers.get(f"gradient/{side}_nonfinite_steps")
        if total is None:
            return
        more = total - self.skipped.get(side, 0.0)
        self.skipped[side] = total
        if more >= self.many:
            tasks = dict.fromkeys(name.partition("/nonfinite_")[2] for name in numbers if "/nonfinite_" in name)
            first = f", first in the gradients of {', '.join(tasks)}" if tasks else ""
            what = f"{more:.0f} steps of the {side} were left out since the row before: their gradient was not finite{first}"
            yield Finding(f"{side} steps", what, HELP)

    def _exploded(self, name: str, value: float) -> str:
        """What to say after a loss that has exploded; empty where it has not."""
        earlier = self.losses[name]
        usual = median(earlier) if earlier else value
        earlier.append(value)
        if value > HUGE_ANYWAY or (len(earlier) > 5 and value > HUGE and value > HUGE * usual):
            return f" (usually {usual:.3g})" if value > HUGE * usual else " "
        return ""


def _words(name: str) -> str:
    return name.replace("_", " ")
