"""CPUs and GPUs of workers, each of which is on one node of the cluster."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtgen.config import Config
from mtgen.config.hardware import Hardware, decide
from mtgen.config.run_sections import LaunchConfig
from mtgen.errors import ConfigError
from mtgen.launchers import ray_cluster as ray_cluster_module
from mtgen.launchers.process_group import GroupConfig
from mtgen.launchers.ray_cluster import cluster_hardware, cpus_per_worker, max_cpus_per_worker, ray_cluster
from mtgen.launchers.worker_environment import worker_environment

NODES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4)), max_size=5)


def placed(nodes: list[tuple[int, int]], workers: int, cpus: int, gpus: int) -> bool:
    """Whether all workers fit when each is placed on the first node with enough left."""
    left = [list(node) for node in nodes]
    for _ in range(workers):
        node = next((own for own in left if own[0] >= cpus and own[1] >= gpus), None)
        if node is None:
            return False
        node[0], node[1] = node[0] - cpus, node[1] - gpus
    return True


@given(NODES, st.integers(1, 12), st.sampled_from([0, 1]))
def test_all_workers_fit_with_the_cpus_that_each_gets_and_not_with_more(
    nodes: list[tuple[int, int]], workers: int, gpus: int
) -> None:
    cpus_each = max_cpus_per_worker(nodes, workers, gpus)
    assert cpus_each == 0 or placed(nodes, workers, cpus_each, gpus)
    assert not any(placed(nodes, workers, cpus, gpus) for cpus in range(cpus_each + 1, 21))


def config(workers: object) -> Config:
    return Config.model_validate(
        {"name": "run", "data": {"path": "data"}, "workers": workers, "batch_size": 64, "device": "cpu"}
    )


@pytest.mark.parametrize(
    ("cpus", "workers", "cpus_each"),
    [([8], 2, 4), ([8], 3, 2), ([8, 8], 1, 8), ([4, 4, 4], 2, 4), ([8, 2], 2, 4), ([4], {"min": 2, "max": 8}, 1)],
)
def test_a_worker_gets_no_more_than_a_node_has(cpus: list[int], workers: object, cpus_each: int) -> None:
    assert cpus_per_worker(config(workers), [{"CPU": float(own), "memory": 1e9} for own in cpus], "cpu") == cpus_each


def test_no_worker_fits_on_a_node_without_cpus() -> None:
    with pytest.raises(ConfigError, match="workers=3: there are 2 CPUs, and every worker needs one; possible: 0 to 2"):
        cpus_per_worker(config(3), [{"CPU": 2.0}, {"memory": 1e9}], "cpu")


def test_a_gpu_needs_a_cpu_on_its_node() -> None:
    nodes = [{"CPU": 64.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 1.0, "GPU": 2.0}]
    assert cpus_per_worker(config(8), nodes, "cuda") == 8
    with pytest.raises(
        ConfigError, match=r"workers=10: there are 10 GPUs and 129 CPUs, .* same node; possible: 0 to 9, or device=cpu"
    ):
        cpus_per_worker(config(10), nodes, "cuda")


def test_on_a_shared_cluster_workers_get_the_cpus_that_are_free_and_one_each_where_they_have_to_wait() -> None:
    nodes, free = [{"CPU": 16.0}, {"CPU": 16.0}], [{"CPU": 6.0}, {"CPU": 2.0}]
    assert cpus_per_worker(config(2), nodes, "cpu") == 16
    assert cpus_per_worker(config(2), nodes, "cpu", free) == 3
    assert cpus_per_worker(config(12), nodes, "cpu", free) == 1


def test_the_cpus_of_a_worker_can_be_given() -> None:
    def given(cpus: int, workers: int) -> int:
        wanted = config(workers).model_copy(update={"launch": LaunchConfig(cpus_per_worker=cpus)})
        return cpus_per_worker(wanted, [{"CPU": 8.0}, {"CPU": 8.0}], "cpu", [])

    assert given(3, 4) == 3
    with pytest.raises(ConfigError, match=r"launch.cpus_per_worker=3: 4 workers .* fit, and workers=5 have to"):
        given(3, 5)


def test_workers_get_the_variables_that_are_named() -> None:
    here = {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "ib0", "AWS_SECRET_ACCESS_KEY": "hidden", "HOME": "/root"}
    assert worker_environment(config(1), here) == {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "ib0"}
    named = config(1).model_copy(update={"launch": LaunchConfig(env=["AWS_*", "HOME"])})
    assert worker_environment(named, here) == {"AWS_SECRET_ACCESS_KEY": "hidden", "HOME": "/root"}
    missing = config(1).model_copy(update={"launch": LaunchConfig(env=["HF_TOKEN"])})
    with pytest.raises(ConfigError, match="launch.env: HF_TOKEN is not set"):
        worker_environment(missing, here)


def test_values_of_variables_are_not_in_what_is_written_about_a_run() -> None:
    named = config(1).model_copy(update={"launch": LaunchConfig(env=["AWS_*"])})
    given = GroupConfig(backend="gloo", environment=worker_environment(named, {"AWS_SECRET_ACCESS_KEY": "hidden"}))
    assert (
        "hidden" not in repr(given) + str(given.to_dict())
        and "hidden" not in named.to_yaml()
        and "AWS_*" in named.to_yaml()
    )


@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
def test_a_cluster_without_gpus_has_none_whatever_this_system_has(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = cluster_hardware(
        config(2).model_copy(update={"device": device, "address": "10.0.0.1:6379"}), [{"CPU": 4.0}, {"CPU": 8.0}]
    )
    assert (found.devices, found.place) == (("cpu",), "in the Ray cluster")


@pytest.mark.e2e
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device, which the cluster would find")
def test_a_worker_with_a_gpu_is_asked_where_the_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is pretended, so torch does not see it there: the answer of the worker is the error.

    A worker that pretends to see it as well decides device and precision for the driver, which has no GPU.
    """
    import ray

    with ray_cluster(config(1), cpus=1, gpus=1) as nodes:
        assert [node.get("GPU") for node in nodes] == [1.0]
        elsewhere = config(1).model_copy(update={"device": "auto", "address": "10.0.0.1:6379"})
        with pytest.raises(ConfigError, match=r"device=auto: torch sees no GPU on .*, which has one for Ray"):
            cluster_hardware(elsewhere, nodes)
        seen = Hardware(("cpu", "cuda"), ("cpu", "cuda"))
        monkeypatch.setattr(ray_cluster_module, "_hardware_of_worker", lambda: (str(ray.get_gpu_ids()), seen, ""))
        found = cluster_hardware(elsewhere, nodes)
        assert (found.devices, found.place) == (("cpu", "cuda"), "in the Ray cluster")
        decided, device = decide(elsewhere.model_copy(update={"precision": "auto"}), found)
        assert (decided.precision, device) == ("bf16", "cuda")
        assert cpus_per_worker(decided, nodes, device) == 1
        with pytest.raises(ConfigError, match=r"workers=2: there are 1 GPUs and 1 CPUs"):
            cpus_per_worker(config(2), nodes, device)
        assert ray.is_initialized()
