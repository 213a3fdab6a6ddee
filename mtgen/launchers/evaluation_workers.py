"""An evaluation on several of Ray's workers: they decode, draw, read and extract; metrics are fed here, in the order of the positions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

from mtgen.config import Config, resolve_device
from mtgen.errors import UserError, last_line
from mtgen.evaluation.run import EvaluationJob, load_evaluation
from mtgen.evaluation.streams import RequestedOutputs, Stage, StreamPart, StreamProducer, StreamSource, to_cpu
from mtgen.launchers.ray_cluster import cpus_per_worker, ray_cluster

PREFETCH_PARTS = 2
"""Parts that a worker makes before the last one is taken, so that memory stays flat where the metrics are slower than the workers."""


@contextmanager
def evaluate_on_ray(config: Config, job: EvaluationJob, cpus: int | None = None) -> Iterator[StreamSource]:
    """`config.workers` workers of a cluster, each of which goes through its own part of every stage.

    A part is a function of its position, so that a worker that is lost begins its stage again, and what was taken already is passed over.

    Args:
        cpus: CPUs of a cluster on this machine; default: all.

    Raises:
        UserError: a worker failed.
    """
    with ray_cluster(config, cpus) as nodes:
        import ray

        threads, world = cpus_per_worker(config, nodes), config.max_workers
        gpus = 1 if resolve_device(config) == "cuda" else 0
        task: Any = ray.remote(_parts).options(
            num_cpus=threads, num_gpus=gpus, num_returns="streaming", _generator_backpressure_num_objects=PREFETCH_PARTS
        )

        def gather(stage: Stage, wanted: RequestedOutputs, start: int) -> Iterator[StreamPart]:
            jobs = [replace(job, rank=rank, world=world, threads=threads) for rank in range(world)]
            try:
                yield from _in_turn([task.remote(stage, wanted, start, one) for one in jobs], ray.get)
            except ray.exceptions.RayError as error:
                raise UserError(f"a worker of the evaluation failed: {last_line(error)}") from error

        yield gather


def _in_turn(streams: list[Iterator[Any]], get: Callable[[Any], StreamPart]) -> Iterator[StreamPart]:
    """The parts of all workers, in the order of their positions: they are dealt out in turn, the last round may be short."""
    while streams:
        for stream in list(streams):
            try:
                reference = next(stream)
            except StopIteration:
                streams.remove(stream)
            else:
                yield get(reference)


@lru_cache(maxsize=1)
def _work(job: EvaluationJob) -> StreamProducer:
    """Loaded once in a worker's process, whatever the number of stages."""
    return load_evaluation(job).producer


def _parts(stage: Stage, wanted: RequestedOutputs, start: int, job: EvaluationJob) -> Iterator[StreamPart]:
    """What each of Ray's workers runs."""
    import torch

    torch.set_num_threads(job.threads)
    for part in _work(job).parts(stage, wanted, start):
        yield to_cpu(part)
