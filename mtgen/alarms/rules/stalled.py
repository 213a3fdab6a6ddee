"""A task that has stopped learning, or never began: its loss is flat and its metric poor."""

from collections.abc import Iterator

from mtgen.alarms.base import ALARM_RULES, AlarmRule, Finding, Numbers, grace_images
from mtgen.balancing.conflicts import gate_histories
from mtgen.config import Config

MAX_POOR_METRIC = 0.5
"""Metrics go from 0 to 1; a task that stands above it may well have learned what there is to learn."""

MIN_METRIC_GAIN, MAX_LOSS_RATIO = 0.01, 0.98
"""A metric improves by more than the first (500 test images or more: its deviation is 0.02 at most); a loss falls below the second, as a
share of what it was. Measured on digits at 8x8 while accuracy rose from 0.13 to 0.39: the loss fell by 2 to 4 % every 800 images."""

MIN_LR_FRACTION = 0.5
"""Share of its peak below which the learning rate alone lets everything stand still."""

MIN_GRADIENT_FRACTION = 0.01
"""Share of the gate's gradient that is worth a word. By itself it says nothing: in a run on digits that went well, generation had 99.6 %
of it, since heads learn by gradients of their own, and Adam evens sizes out."""


@ALARM_RULES.register("stalled")
class Stalled(AlarmRule):
    """Tasks with a metric: it is poor and does not improve, and the loss does not fall, while learning rates are high."""

    def __init__(self, config: Config) -> None:
        self.youth = grace_images(config)
        self.metrics = {name: settings.metric for name, settings in config.task_settings().items() if settings.metric}
        self.losses: dict[str, list[tuple[int, float]]] = {task: [] for task in self.metrics}
        self.measured: dict[str, list[tuple[int, float]]] = {task: [] for task in self.metrics}
        self.shares: dict[str, float] = {}
        self.rate = 1.0

    def check(self, images: int, numbers: Numbers) -> Iterator[Finding]:
        self.rate = numbers.get("learning_rate/factor", self.rate)
        gate = gate_histories([(images, numbers)]).get("discriminator")
        self.shares = gate.gradient_fractions(1) if gate is not None else self.shares
        for task, metric in self.metrics.items():
            if losses := [value for name, value in numbers.items() if name.startswith(f"loss_d/{task}_")]:
                self.losses[task].append((images, sum(losses)))
            if metric in numbers:
                self.measured[task].append((images, numbers[metric]))
                yield from self._judge(task, metric, images)

    def _judge(self, task: str, metric: str, images: int) -> Iterator[Finding]:
        before = [(at, value) for at, value in self.measured[task] if at <= images - self.youth]
        if not before or self.rate < MIN_LR_FRACTION:
            return
        begin = before[-1][0]
        after = [value for at, value in self.measured[task] if at > begin]
        losses = [value for at, value in self.losses[task] if at > begin]
        first, second = losses[: len(losses) // 2], losses[len(losses) // 2 :]
        if (
            after[-1] >= MAX_POOR_METRIC
            or max(after) > max(value for _, value in before) + MIN_METRIC_GAIN
            or not first
        ):
            return
        was, now = sum(first) / len(first), sum(second) / len(second)
        if now < MAX_LOSS_RATIO * was:
            return
        share = self.shares.get(task, 1.0)
        little = (
            f", with {100 * share:.2g} % of the gradient at the discriminator's gate"
            if share < MIN_GRADIENT_FRACTION
            else ""
        )
        yield Finding(
            task,
            f"{metric} is {after[-1]:.3f} and has not improved since {begin:,} images, and the loss of {task} has not fallen ({was:.3g}, "
            f"now {now:.3g}){little}",
            f"a higher tasks.{task}.weight, a gate that evens the tasks' gradients out (balancing.weighting=imtl_g or nash_mtl; "
            "`mtgen tasks` shows who hurts whom), a look at the labels (`mtgen shards view`, samples/batch-0*.png)",
        )
