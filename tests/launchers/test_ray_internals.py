"""Each private attribute of Ray exists and does what mtgen uses it for; a missing one is one clear error."""

import configparser
import importlib.util
import inspect
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from packaging.requirements import Requirement
from ray._private import services
from ray.train import ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchTrainer

from mtgen.errors import UserError
from mtgen.launchers import ray_internals
from mtgen.launchers.elastic import ElasticResize
from mtgen.launchers.process_group import GroupConfig
from mtgen.launchers.ray_internals import PRIVATE_ATTRIBUTES, PrivateAttribute, require
from mtgen.launchers.restarts import RestartBudget
from mtgen.training.protocol import Resize

ROOT = Path(__file__).resolve().parents[2]
FOUR = {"four": {"CPU": 4.0}}

BUDGET = RestartBudget(3, 360, lambda: 0)


def test_ray_is_pinned_to_the_version_of_ray_internals() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extra = [Requirement(line) for line in setup["options.extras_require"]["train"].split("\n") if line]
    (pinned,) = [one for one in extra if one.name == "ray"]
    assert str(pinned.specifier) == f"=={ray_internals.RAY_VERSION}.*"
    assert pinned.specifier.contains(ray.__version__)
    locked = re.search(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None and pinned.specifier.contains(locked[1])


@pytest.mark.parametrize("attribute", PRIVATE_ATTRIBUTES, ids=lambda attribute: attribute.path.rpartition(".")[2])
def test_each_attribute_exists_and_has_a_purpose(attribute: PrivateAttribute) -> None:
    require(attribute)
    assert attribute.purpose and attribute.until


@pytest.mark.parametrize(
    "path",
    ["ray.no_such_module:Thing", "ray.train.torch.config:_NoBackend", "ray.train.torch.config:_TorchBackend.no_method"],
)
@pytest.mark.parametrize("set_by_constructor", [False, True])
def test_a_missing_attribute_is_one_clear_error(path: str, set_by_constructor: bool) -> None:
    missing = PrivateAttribute(path, "", "", set_by_constructor)
    with pytest.raises(UserError, match=rf"ray=={ray.__version__}: {path} does not exist.*ray\[default,train\]==2\.60"):
        require(missing)


def test_a_missing_module_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.train.v2._internal.execution.controller", None)
    spec = importlib.util.spec_from_file_location("again", ray_internals.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(
        UserError, match=rf"ray=={ray.__version__}: .*execution\.controller.*ray\[default,train\]==2\.60"
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_token_is_checked_with_a_read_only_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a real cluster rejects a wrong token is tested in tests/e2e/test_tls.py."""
    asked: list[Any] = []

    class Client:
        def __init__(self, address: str) -> None:
            asked.append(address)

        def internal_kv_keys(self, prefix: bytes, namespace: bytes | None, timeout: int) -> list[bytes]:
            asked.append((prefix, namespace, timeout))
            return []

    monkeypatch.setattr(ray_internals, "GcsClient", Client)
    ray_internals.check_token("10.0.0.1:6379")
    assert asked == ["10.0.0.1:6379", (b"mtgen", None, 30)]


@pytest.mark.parametrize("loopback", [True, False])
def test_a_cluster_on_loopback_uses_the_loopback_address(loopback: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ray_internals.ray_constants, "ENABLE_RAY_CLUSTER", ray_internals.ray_constants.ENABLE_RAY_CLUSTER
    )
    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda address: "192.0.2.1")
    ray_internals.restrict_to_loopback(loopback)
    assert services.get_node_ip_address() == ("127.0.0.1" if loopback else "192.0.2.1")


def test_ray_knows_the_option_that_limits_a_generator() -> None:
    def count() -> Any:
        yield 1

    ray.remote(count).options(**ray_internals.streaming_options(2))
    with pytest.raises(ValueError, match="_no_such_option"):
        ray.remote(count).options(_no_such_option=2)


def test_the_backend_of_the_process_group_differs_from_ray_trains_only_in_its_start() -> None:
    backend = GroupConfig(backend="gloo").backend_cls
    assert issubclass(backend, ray_internals.TorchBackend) and issubclass(backend, Backend)
    assert {name for name in vars(backend) if not name.startswith("_")} == {"on_start"}
    assert backend.share_cuda_visible_devices


def test_a_fixed_policy_does_not_contact_the_autoscaler() -> None:
    policy = ray_internals.NoAutoscaling(ScalingConfig(num_workers=2))
    policy.after_controller_start(None)  # which starts the client in Ray's own
    policy.before_controller_abort()
    assert policy._coordinator_client is None
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    assert isinstance(policy.make_decision_for_running_worker_group(None, None), ray_internals.NoopDecision)


@pytest.fixture
def elastic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ray_internals.ElasticPolicy:
    """A policy for 1, 2 or 4 workers, without a monitoring interval, on a cluster with room for 4."""
    scaling = ScalingConfig(
        num_workers=(1, 4), resources_per_worker={"CPU": 1}, elastic_resize_monitor_interval_s=0.001
    )
    policy = ray_internals.ElasticPolicy(scaling, ElasticResize([1, 2, 4], tmp_path))
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: FOUR)
    return policy


def test_an_elastic_run_starts_with_the_largest_count_that_fits(
    elastic: ray_internals.ElasticPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elastic, "_get_reserved_resources", lambda: {"one": {"CPU": 2.0}, "two": {"CPU": 1.0}})
    assert elastic.make_decision_for_non_running_worker_group().num_workers == 2
    monkeypatch.setattr(elastic, "_get_reserved_resources", lambda: {})
    assert isinstance(elastic.make_decision_for_non_running_worker_group(), ray_internals.NoopDecision)


def test_an_elastic_run_grows_once_its_workers_have_saved_a_checkpoint(
    elastic: ray_internals.ElasticPolicy, tmp_path: Path
) -> None:
    running = SimpleNamespace(num_workers=2, start_time=float("-inf"))
    workers = Resize(tmp_path)
    assert isinstance(elastic.make_decision_for_running_worker_group(running, None), ray_internals.NoopDecision)
    assert workers.asked() and not workers.is_ready()
    workers.ready()
    assert elastic.make_decision_for_running_worker_group(running, None).num_workers == 4


def test_an_elastic_run_that_lost_its_workers_drops_its_resize(
    elastic: ray_internals.ElasticPolicy, tmp_path: Path
) -> None:
    elastic.make_decision_for_running_worker_group(SimpleNamespace(num_workers=2, start_time=float("-inf")), None)
    elastic.make_decision_for_non_running_worker_group()
    Resize(tmp_path).ready()
    full = SimpleNamespace(num_workers=4, start_time=float("-inf"))
    assert isinstance(elastic.make_decision_for_running_worker_group(full, None), ray_internals.NoopDecision)


def test_workers_get_no_controller_but_everything_else_that_ray_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def worker(rank: int) -> Any:
        start = SimpleNamespace(remote=lambda **arguments: given.append(arguments))
        return SimpleNamespace(actor=SimpleNamespace(init_train_context=start), distributed_context=f"place {rank}")

    monkeypatch.setattr(ray, "get", lambda references: None)
    group = ray_internals.DriverLedWorkerGroup.__new__(ray_internals.DriverLedWorkerGroup)
    group._train_run_context = "run"
    group._storage_context = "storage"
    group._worker_callbacks_to_propagate = ["callback"]
    decorated: list[Any] = []
    group._decorate_worker_log_file_paths = decorated.extend
    workers = [worker(0), worker(1)]
    group._init_train_context_on_workers(workers, "synchronization", {"dataset_shard_provider": ["a", "b"]})
    assert [one["distributed_context"] for one in given] == ["place 0", "place 1"]
    assert [one["dataset_shard_provider"] for one in given] == ["a", "b"]
    assert given[0]["controller_actor"] is None and given[0]["train_run_context"] == "run"
    assert decorated == workers
    method = inspect.getsource(ray_internals.WorkerGroup._init_train_context_on_workers)
    assert set(re.findall(r"^ +(\w+)=", method, re.MULTILINE)) == set(given[0]) - {"dataset_shard_provider"}


@pytest.fixture
def trainer(tmp_path: Path) -> ray_internals.DriverTrainer:
    return ray_internals.DriverTrainer(print, counts=[1, 2], folder=tmp_path, own_cluster=True, budget=BUDGET)


def test_the_trainer_leaves_out_the_callbacks_that_start_processes(trainer: ray_internals.DriverTrainer) -> None:
    plain, ours = (
        {type(callback).__name__ for callback in one._create_default_callbacks()}
        for one in (TorchTrainer(print), trainer)
    )
    assert plain - ours == {"DatasetsCallback", "PlacementGroupCleanerCallback"} and ours < plain


@pytest.mark.parametrize(
    ("counts", "own_cluster", "policy"),
    [([1, 2], True, "ElasticPolicy"), ([2], True, "NoAutoscaling"), ([2], False, "Ray's own")],
)
def test_the_controller_runs_in_this_process_with_the_policy_of_the_run(
    counts: list[int], own_cluster: bool, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    led: list[Any] = []

    class Controller:
        def __init__(self, **settings: Any) -> None:
            led.append(settings["scaling_policy"])

        async def run(self) -> None:
            led.append(os.getpid())

        def get_result(self) -> str:
            return "result"

    monkeypatch.setattr(ray_internals, "DriverLedController", Controller)
    scaling = ScalingConfig(num_workers=(counts[0], counts[-1]) if len(counts) > 1 else counts[0])
    trainer = ray_internals.DriverTrainer(
        print, counts=counts, folder=tmp_path, own_cluster=own_cluster, budget=BUDGET, scaling_config=scaling
    )
    assert trainer._initialize_and_run_controller(scaling_policy="Ray's own") == "result"
    assert led[0] == policy or type(led[0]).__name__ == policy
    assert led[1] == os.getpid()


def test_the_controllers_methods_are_what_the_trainer_expects() -> None:
    controller = ray_internals.DriverLedController
    assert controller.worker_group_cls is ray_internals.DriverLedWorkerGroup
    assert inspect.iscoroutinefunction(controller.run) and not inspect.iscoroutinefunction(controller.get_result)
