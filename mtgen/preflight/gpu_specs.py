"""GPU specifications from data sheets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU and its connections.

    Attributes:
        half: dense floating-point operations per second in bf16 or fp16.
        single: floating-point operations per second in fp32 (CUDA cores).
        memory: bytes.
        bandwidth: bytes per second of its memory.
        link: bytes per second and direction to other GPUs of its node.
        network: bytes per second and direction to other nodes.
        node: GPUs per node.
    """

    half: float
    single: float
    memory: float
    bandwidth: float
    link: float
    network: float
    node: int = 8


GPUS = {
    "h200": Gpu(989e12, 67e12, 141e9, 4.8e12, 450e9, 50e9),
    "h100": Gpu(989e12, 67e12, 80e9, 3.35e12, 450e9, 50e9),
    "a100": Gpu(312e12, 19.5e12, 80e9, 2.04e12, 300e9, 25e9),
    "l40s": Gpu(362e12, 91.6e12, 48e9, 0.864e12, 32e9, 25e9),
}
"""SXM modules in NVIDIA's DGX nodes (NVLink, a network card of 400 or 200 Gb/s per GPU); L40S: PCIe 4.0."""
