"""Stalled: a task that has stopped learning, or never started; its loss is flat and its metric is poor."""

from collections.abc import Iterator

from mtgen.alarms.base import ALARM_RULES, AlarmRule, Finding, Numbers, grace_images
from mtgen.balancing.conflicts import gate_histories
from mtgen.config import Config
from mtgen.tracking.journal import snapshot_name

MAX_POOR_METRIC = 0.5
"""Metrics range from 0 to 1; a task above this value may have learned all it can."""

MIN_METRIC_GAIN, MAX_LOSS_RATIO = 0.01, 0.98
"""A metric improves if it gains more than the first (its deviation is at most 0.02 on 500 images or more). A loss
falls if it drops below the second, as a fraction of its earlier value. Measured on digits at 8x8, while accuracy rose
from 0.13 to 0.39: the loss fell by 2 to 4 % every 800 images."""

MIN_LR_FRACTION = 0.5
"""Fraction of its peak below which the learning rate alone explains that nothing improves."""

MIN_GRADIENT_FRACTION = 0.01
"""Fraction of the gate's gradient below which it is mentioned. It is no alarm by itself: in a good run on digits,
generation had 99.6 % of it, because heads also learn from their own gradients, and Adam normalizes magnitudes."""


@ALARM_RULES.register("stalled")
class Stalled(AlarmRule):
    """The metric of a task is poor and does not improve, and its loss does not fall, while learning rates are high."""

    def __init__(self, config: Config) -> None:
        self.grace_images = grace_images(config)
        self.metrics = {name: settings.metric for name, settings in config.task_settings().items() if settings.metric}
        self.losses: dict[str, list[tuple[int, float]]] = {task: [] for task in self.metrics}
        self.measured: dict[str, list[tuple[int, float]]] = {task: [] for task in self.metrics}
        self.gradient_fractions: dict[str, float] = {}
        self.lr_fraction = 1.0

    def check(self, images: int, numbers: Numbers) -> Iterator[Finding]:
        self.lr_fraction = numbers.get("learning_rate/factor", self.lr_fraction)
        gate = gate_histories([(images, numbers)]).get("discriminator")
        if gate is not None:
            self.gradient_fractions = gate.gradient_fractions(1)
        for task, metric in self.metrics.items():
            if losses := [value for name, value in numbers.items() if name.startswith(f"loss_d/{task}_")]:
                self.losses[task].append((images, sum(losses)))
            # rows of older versions have the metric's own name
            if (name := next((name for name in (snapshot_name(metric), metric) if name in numbers), None)) is not None:
                self.measured[task].append((images, numbers[name]))
                yield from self._check_task(task, name, images)

    def _check_task(self, task: str, metric: str, images: int) -> Iterator[Finding]:
        before = [(at, value) for at, value in self.measured[task] if at <= images - self.grace_images]
        if not before or self.lr_fraction < MIN_LR_FRACTION:
            return
        begin = before[-1][0]
        after = [value for at, value in self.measured[task] if at > begin]
        losses = [value for at, value in self.losses[task] if at > begin]
        first, second = losses[: len(losses) // 2], losses[len(losses) // 2 :]
        improves = max(after) > max(value for _, value in before) + MIN_METRIC_GAIN
        if after[-1] >= MAX_POOR_METRIC or improves or not first:
            return
        was, now = sum(first) / len(first), sum(second) / len(second)
        if now < MAX_LOSS_RATIO * was:
            return
        fraction = self.gradient_fractions.get(task, 1.0)
        note = ""
        if fraction < MIN_GRADIENT_FRACTION:
            note = f"; its gradient is {100 * fraction:.2g} % of the total at the discriminator's gate"
        yield Finding(
            task,
            f"{metric} is {after[-1]:.3f} and has not improved since {begin:,} images, and the loss of {task} has not "
            f"fallen ({was:.3g}, now {now:.3g}){note}",
            f"a higher tasks.{task}.weight, a weighting that equalizes the tasks' gradients "
            "(balancing.weighting=imtl_g or nash_mtl; `mtgen conflicts` shows which tasks conflict), "
            "a look at the labels (`mtgen shards view`, samples/batch-0*.png)",
        )
