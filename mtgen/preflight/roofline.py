"""A model of runs on GPUs, from counted costs: speed with error bars, memory and bottleneck, without such a GPU."""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

from mtgen.config import Config
from mtgen.preflight.collectives import LL, LL128, SIMPLE, Latencies, all_reduce_latency, gather_latency
from mtgen.preflight.cost import Cost
from mtgen.preflight.gpu_specs import Gpu

RESERVED_BYTES = 3 * 2**30
"""Bytes of a GPU for CUDA's context, buffers of NCCL and DALI, and work space of kernels. An assumption."""
USABLE_MEMORY_FRACTION = 0.92
"""Fraction of the rest that can be used before fragmentation prevents further allocations. An assumption."""
UTILIZATION = 0.25
"""Fraction of the peak arithmetic that convolutions reach. An assumption."""
BACKWARD_FRACTION = 2 / 3
"""Fraction of a step's work during which gradients can be reduced: a backward is two of three forwards."""


@dataclass(frozen=True)
class Assumptions:
    """What no count says.

    Attributes:
        utilization: fraction of the GPU's peak arithmetic, 0 to 1.
        launch_seconds: of the host per kernel in eager mode: Python, autograd and torch's dispatcher. Measured on one
            CPU core, with arithmetic made tiny: 12 to 16 us; the driver's part is not in it.
        passes: of activations through memory: they are written and read, and so are their gradients.
        bandwidth: fraction of the links' bandwidth that collectives reach.
        latencies: of collectives, by the protocol that NCCL chooses.
        overlap: fraction of the backward behind which the reduction of gradients hides.
        jitter: standard deviation of a worker's step relative to its mean; the slowest worker decides.
        wait_seconds: in which a GPU is idle after its host has waited for it.
        copy_rate: bytes per second from the GPU to pageable memory of the host.
    """

    utilization: float
    launch_seconds: float
    passes: float
    bandwidth: float
    latencies: Latencies
    overlap: float
    jitter: float
    wait_seconds: float
    copy_rate: float


class Bars(NamedTuple):
    """The pessimistic, expected and optimistic value of something."""

    pessimistic: Assumptions
    expected: Assumptions
    optimistic: Assumptions


def assumptions(utilization: float = UTILIZATION) -> Bars:
    """The assumptions around an expected utilization."""
    return Bars(
        Assumptions(0.6 * utilization, 16e-6, 6, 0.5, SIMPLE, 0.0, 0.03, 200e-6, 4e9),
        Assumptions(utilization, 14e-6, 4, 0.8, LL128, 0.0, 0.01, 50e-6, 10e9),
        Assumptions(min(1.0, 1.6 * utilization), 12e-6, 3, 0.95, LL, 1.0, 0.0, 20e-6, 25e9),
    )


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the parts of a step. The first three overlap; the others follow.

    Attributes:
        arithmetic: operations.
        memory: memory accesses.
        launches: starting kernels.
        reduction: bytes of the gradients, as far as no backward hides them.
        alignment: bytes of the embeddings that all workers gather, and of their gradients.
        latency: of all collectives.
        waits: of the host for its GPU.
        stragglers: of all workers for the slowest.
    """

    arithmetic: float
    memory: float
    launches: float
    reduction: float
    alignment: float
    latency: float
    waits: float
    stragglers: float

    @property
    def total(self) -> float:
        """Seconds of a step."""
        rest = self.reduction + self.alignment + self.latency + self.waits + self.stragglers
        return max(self.arithmetic, self.memory, self.launches) + rest

    @property
    def bound(self) -> str:
        """The longest part."""
        return max(fields(self), key=lambda part: float(getattr(self, part.name))).name


@dataclass(frozen=True)
class Forecast:
    """Estimates for a run on a number of GPUs.

    Attributes:
        rows: images per GPU in a micro-batch.
        memory: bytes that a GPU needs.
        capacity: bytes that a GPU can provide.
        most_rows: the most images that would fit in a micro-batch; 0: not even the state fits.
        times: of a step.
        images_per_second: speed of all GPUs together.
        checkpoint_stall: seconds for which a checkpoint stops training: the first worker copies it to its host.
        evaluation: seconds of one GPU to generate and predict the images of a quick evaluation; the least it takes.
    """

    rows: int
    memory: float
    capacity: float
    most_rows: int
    times: StepTimes
    images_per_second: float
    checkpoint_stall: float
    evaluation: float

    @property
    def fits(self) -> bool:
        """Whether a micro-batch fits."""
        return self.rows <= self.most_rows

    def days(self, images: int) -> float:
        """Days of training for `images` images, without startup, evaluation and checkpoints."""
        return images / self.images_per_second / 86400


def forecast(config: Config, cost: Cost, gpu: Gpu, gpus: int, assume: Assumptions) -> Forecast:
    """Estimate a run's speed and memory.

    Args:
        config: configuration, whose batch is divided evenly among GPUs and `train.accumulation` micro-batches.
        cost: cost of the configuration.
        gpu: the GPU.
        gpus: number of GPUs.

    Source: roofline model (Williams et al. 2009).
    """
    rows = max(1, round(config.batch_size / gpus / config.train.accumulation))
    capacity = (gpu.memory - RESERVED_BYTES) * USABLE_MEMORY_FRACTION
    state = cost.state_bytes(config.zero_stage, gpus)
    times = _step_times(config, cost, gpu, gpus, assume)
    sampled = config.evaluate.snapshot_samples * (cost.sampling + cost.prediction)
    return Forecast(
        rows,
        state + rows * cost.activations + rows * rows * gpus * cost.contrast_bytes,
        capacity,
        _most_rows(capacity - state, cost.activations, gpus * cost.contrast_bytes),
        times,
        config.batch_size / times.total,
        cost.checkpoint_bytes / assume.copy_rate,
        sampled / (_peak(config, gpu) * assume.utilization),
    )


def forecast_bars(config: Config, cost: Cost, gpu: Gpu, gpus: int, utilization: float) -> list[Forecast]:
    """The pessimistic, expected and optimistic `forecast`."""
    return [forecast(config, cost, gpu, gpus, assume) for assume in assumptions(utilization)]


def _peak(config: Config, gpu: Gpu) -> float:
    return gpu.single if config.precision == "fp32" else gpu.half


def _step_times(config: Config, cost: Cost, gpu: Gpu, gpus: int, assume: Assumptions) -> StepTimes:
    micro_batches = config.train.accumulation
    each = config.batch_size / gpus
    columns = config.batch_size / micro_batches  # of the contrasts, whose rows are this worker's
    network = (gpu.link if gpus <= gpu.node else gpu.network) * assume.bandwidth
    size = cost.embeddings / max(1, cost.contrasts)
    contrasts = 6 * cost.contrasts * each * columns * size  # forward and backward, fp32
    arithmetic = each * cost.step / _peak(config, gpu) + contrasts / gpu.single
    arithmetic /= assume.utilization
    memory = assume.passes * each * (cost.activations + columns * cost.contrast_bytes) / gpu.bandwidth
    launches = micro_batches * cost.kernels * assume.launch_seconds
    busy = max(arithmetic, memory, launches)
    # ring reduction: Patarasuk and Yuan 2009
    reduction = max(0.0, cost.traffic(gpus) / network - assume.overlap * BACKWARD_FRACTION * busy)
    gathered = 2 * 4 * cost.embeddings * config.batch_size * (gpus - 1) / gpus  # there and back
    reduce, gather = (latency(assume.latencies, gpus, gpu.node) for latency in (all_reduce_latency, gather_latency))
    engines = 2 if config.generates else 1
    per_engine = 2 * gather + reduce if config.zero_stage else reduce  # with partitions, norms are summed too
    exchange = 3 * gather if cost.contrasts else 0.0  # embeddings, facts about them, gradients
    latency = engines * per_engine + micro_batches * (cost.gates * reduce + exchange)
    waits = micro_batches * cost.waits * assume.wait_seconds
    # the expected maximum of as many normal variables is at most sqrt(2 ln N) deviations above their mean
    stragglers = assume.jitter * math.sqrt(2 * math.log(gpus)) * busy
    return StepTimes(arithmetic, memory, launches, reduction, gathered / network, latency, waits, stragglers)


def _most_rows(room: float, each: float, pair: float) -> int:
    """The largest r with `r * each + r * r * pair <= room`."""
    if pair == 0:
        return max(0, int(room / each))
    return max(0, int((math.sqrt(each**2 + 4 * pair * max(0.0, room)) - each) / (2 * pair)))
