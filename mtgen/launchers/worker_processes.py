"""The workers' processes, reached through Ray on whichever node they are."""

from collections.abc import Callable, Sequence
from typing import Any

from mtgen.launchers.watchdog import end_process
from mtgen.training.heartbeat import HeartbeatRecord
from mtgen.training.stacks import read_stacks

NODE_TIMEOUT_SECONDS = 60.0
"""Seconds that a node has to answer: to kill a hung worker, or to read the stacks of its workers."""


def kill(beat: HeartbeatRecord) -> bool:
    """Kill a worker's process on its node; return whether it existed.

    Raises:
        TimeoutError: the node has not answered in time.
    """
    import ray

    ending = _call(beat.node, end_process, beat.pid, beat.born)
    try:
        return bool(ray.get(ending, timeout=NODE_TIMEOUT_SECONDS))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(ending)
        raise
    except ray.exceptions.RayError:  # its node is lost, and the worker with it
        return False


def collect_stacks(beats: Sequence[HeartbeatRecord]) -> list[str]:
    """The stacks of each of the workers, or why there are none; all nodes are asked at the same time."""
    import ray

    nodes: dict[str, list[HeartbeatRecord]] = {}
    for beat in beats:
        nodes.setdefault(beat.node, []).append(beat)
    calls = {
        node: _call(node, read_stacks, [(beat.pid, beat.born, beat.stacks) for beat in own])
        for node, own in nodes.items()
    }
    ready, late = ray.wait(list(calls.values()), num_returns=len(calls), timeout=NODE_TIMEOUT_SECONDS)
    for call in late:
        ray.cancel(call)
    texts: dict[int, str] = {}
    for node, own in nodes.items():
        found = [f"no stacks: its node did not answer for {NODE_TIMEOUT_SECONDS:g} s"] * len(own)
        if calls[node] in ready:
            try:
                found = ray.get(calls[node])
            except ray.exceptions.RayError as error:
                found = [f"no stacks: its node is lost ({type(error).__name__})"] * len(own)
        texts |= dict(zip([beat.rank for beat in own], found, strict=True))
    return [texts[beat.rank] for beat in beats]


def _call(node: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on a node, beside what runs there; returns Ray's reference to its result."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments)
