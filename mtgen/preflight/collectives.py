"""The latency of collectives: what they cost beyond their bytes, by the model of NCCL's tuning."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Latencies:
    """Seconds of a collective's start, of a hop inside a node, and of a hop between nodes.

    Source: `baseLat` and `hwLat` (NVLink, network) of NCCL 2.20, src/graph/tuning.cc.
    """

    tree: tuple[float, float, float]
    ring: tuple[float, float, float]


LL = Latencies(tree=(6.8e-6, 0.6e-6, 5e-6), ring=(6.6e-6, 0.6e-6, 2.7e-6))
"""NCCL's protocol for the smallest messages."""
LL128 = Latencies(tree=(14e-6, 1.25e-6, 8.5e-6), ring=(14e-6, 1.9e-6, 4e-6))
"""NCCL's protocol for small messages over NVLink."""
SIMPLE = Latencies(tree=(8.4e-6, 4e-6, 14e-6), ring=(8.4e-6, 3.4e-6, 14e-6))
"""NCCL's protocol for large messages."""


def all_reduce_latency(latencies: Latencies, gpus: int, node: int) -> float:
    """Seconds of an all-reduce of almost no bytes: the faster one of a tree over nodes and a ring.

    Args:
        node: GPUs per node.
    """
    if gpus == 1:
        return 0.0
    start, link, network = latencies.tree
    tree = start + 2 * ((min(gpus, node) - 1) * link + math.log2(_nodes(gpus, node)) * network)
    return min(tree, _ring(latencies, gpus, node, 2))


def gather_latency(latencies: Latencies, gpus: int, node: int) -> float:
    """Seconds of an all-gather or a reduce-scatter of almost no bytes: a ring, with several GPUs per node."""
    return 0.0 if gpus == 1 else _ring(latencies, gpus, node, 1)


def _ring(latencies: Latencies, gpus: int, node: int, rounds: int) -> float:
    start, link, network = latencies.ring
    between = rounds * (_nodes(gpus, node) - 1)
    return start + (rounds * (gpus - 1) - between) * link + between * network


def _nodes(gpus: int, node: int) -> int:
    return -(-gpus // node)
