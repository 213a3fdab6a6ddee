"""The base class of alarm rules, and what the rules share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mtgen.config import Config
from mtgen.registry import Registry

Numbers = Mapping[str, float]
"""A row of a run's journal."""

HALF_LIVES_OF_GRACE = 5
"""Half-lives of the averaged weights until they forget the start of the run. The half-life itself is a fifth of the
images seen until it reaches its final value."""


@dataclass(frozen=True)
class Finding:
    """What a rule finds in a row; `about`, `what` and `help` as in `Alarm`."""

    about: str
    what: str
    help: str


class AlarmRule:
    """Checks a run's rows, each once and in order, for one kind of problem.

    A rule keeps no state except what it derives from the rows. After a resume it is given all rows of the journal
    again, so its state is the same as before.
    """

    def __init__(self, config: Config) -> None:
        """For a run with this configuration."""

    def check(self, images: int, numbers: Numbers) -> Iterable[Finding]:
        """The problems at a row, also those found before: the caller reports each of them once."""
        raise NotImplementedError


ALARM_RULES: Registry[type[AlarmRule]] = Registry("alarm", "mtgen.alarms.rules")
"""Every rule, by the kind of its alarms."""


def grace_images(config: Config) -> int:
    """Images until a run is judged by its metrics, and for which any other problem has to last.

    Metrics are measured on averaged weights, so this is five half-lives, or the warm-up if that is longer.
    """
    return max(round(HALF_LIVES_OF_GRACE * config.train.ema_half_life), config.train.warmup)


class DurationTracker:
    """Counts the images for which a condition has held without interruption."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}

    def images(self, name: str, holds: bool, images: int) -> int:
        """Images since the condition `name` began to hold; 0 where it does not hold, or begins at this row.

        Args:
            holds: whether it holds at this row.
            images: the position of this row.
        """
        if not holds:
            self._since.pop(name, None)
            return 0
        return images - self._since.setdefault(name, images)
