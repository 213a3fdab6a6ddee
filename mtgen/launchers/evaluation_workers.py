"""An evaluation on several Ray workers: they decode, generate, predict and extract features.

Metrics are updated in this process, in the order of the positions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

from mtgen.config import Config, decide_device
from mtgen.errors import UserError, last_line
from mtgen.evaluation.run import EvaluationJob, load_evaluation
from mtgen.evaluation.streams import RequestedOutputs, Stage, StreamPart, StreamProducer, StreamSource, to_cpu
from mtgen.launchers.ray_cluster import cluster_hardware, cpus_per_worker, ray_cluster

PREFETCH_PARTS = 2
"""Parts that a worker computes ahead, a limit on memory where metrics are slower than workers."""


@contextmanager
def evaluate_on_ray(config: Config, job: EvaluationJob, cpus: int | None = None) -> Iterator[StreamSource]:
    """Run each stage of an evaluation on `config.workers` workers, each with its own parts.

    A part is a function of its position: a lost worker restarts its stage, and parts that were used before are skipped.

    Args:
        cpus: CPUs of a cluster on this system; default: all.

    Yields:
        A function that iterates over a stage's parts.

    Raises:
        UserError: a worker failed.
    """
    with ray_cluster(config, cpus) as nodes:
        import ray

        from mtgen.launchers.ray_internals import streaming_options

        device = decide_device(config, cluster_hardware(config, nodes))
        threads, world = cpus_per_worker(config, nodes, device), config.max_workers
        gpus = 1 if device == "cuda" else 0
        own = replace(job, options=replace(job.options, device=device), world=world, threads=threads)
        task: Any = ray.remote(_parts).options(num_cpus=threads, num_gpus=gpus, **streaming_options(PREFETCH_PARTS))

        def gather(stage: Stage, wanted: RequestedOutputs, start: int) -> Iterator[StreamPart]:
            jobs = [replace(own, rank=rank) for rank in range(world)]
            try:
                yield from _round_robin([task.remote(stage, wanted, start, one) for one in jobs], ray.get)
            except ray.exceptions.RayError as error:
                raise UserError(f"an evaluation worker failed: {last_line(error)}") from error

        yield gather


def _round_robin(streams: list[Iterator[Any]], get: Callable[[Any], StreamPart]) -> Iterator[StreamPart]:
    """The parts of all workers in the order of their positions; the last round may be incomplete."""
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
