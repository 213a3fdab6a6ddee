"""What a rule is, and what rules share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mtgen.config import Config
from mtgen.registry import Registry

Numbers = Mapping[str, float]
"""A row of a run's journal."""


@dataclass(frozen=True)
class Finding:
    """What a rule sees in a row; `about`, `what` and `help` as in `Alarm`."""

    about: str
    what: str
    help: str


class AlarmRule:
    """Looks at a run's rows, each once and in order, for one kind of trouble.

    A rule has no other memory than what it keeps of the rows, and sees no others than those of the journal: after a
    resume it is shown the journal again, and knows what it knew.
    """

    def __init__(self, config: Config) -> None:
        """For a run with this configuration."""

    def check(self, images: int, numbers: Numbers) -> Iterable[Finding]:
        """What is wrong now, whether or not it was before; whoever asks says each thing once."""
        raise NotImplementedError


ALARM_RULES: Registry[type[AlarmRule]] = Registry("alarm", "mtgen.alarms.rules")


def grace_images(config: Config) -> int:
    """Images for which a run is too young to be judged by its metrics, and for which anything else has to last.

    Metrics are measured on averaged weights, whose half-life is a fifth of the images seen until it is `train.ema`:
    five times that.
    """
    return max(round(5 * config.train.ema), config.train.warmup)


class DurationTracker:
    """For how many images something has held without a break."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}

    def images(self, what: str, holds: bool, images: int) -> int:
        """Images since `what` began to hold, at a row at `images`; 0 where it does not hold, or began here."""
        if not holds:
            self._since.pop(what, None)
            return 0
        return images - self._since.setdefault(what, images)
