"""Everything that mtgen uses of Ray beyond its public API. No other file touches a private attribute of Ray.

Written against Ray 2.60, to which setup.cfg pins it. `PRIVATE_ATTRIBUTES` says what each attribute is needed for and
which change in Ray would replace it. To move to another minor version, change `RAY_VERSION`, setup.cfg and
requirements.lock, compare the methods that are overridden here with Ray's, and run tests/launchers and
tests/e2e/test_{jobs,elastic,hang,survival}.py.
"""

import asyncio
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import ray
from ray.train import Result, WorkerGroupError
from ray.train.torch import TorchTrainer

from mtgen.errors import UserError
from mtgen.launchers.elastic import ElasticResize
from mtgen.launchers.restarts import RestartBudget
from mtgen.launchers.shared_folder import FolderNotShared

try:
    from ray._private import ray_constants
    from ray._private.state import available_resources_per_node
    from ray._private.state import state as ray_state
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Cython: mypy does not see into it
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]  # made at run time
    from ray.train.torch.config import _TorchBackend as TorchBackend
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy, _is_preemption_failure
    from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
    from ray.train.v2._internal.execution.scaling_policy import (
        ElasticScalingPolicy,
        FixedScalingPolicy,
        NoopDecision,
        ResizeDecision,
        ScalingDecision,
    )
    from ray.train.v2._internal.execution.worker_group import WorkerGroup
except ImportError as error:
    raise UserError(
        f"ray=={ray.__version__}: {error}; mtgen is written against Ray 2.60: pip install 'ray[default,train]==2.60.*'"
    ) from error

__all__ = [
    "PRIVATE_ATTRIBUTES",
    "DriverTrainer",
    "PrivateAttribute",
    "TorchBackend",
    "available_resources",
    "check_token",
    "drain_node",
    "draining_nodes",
    "folder_problem",
    "require",
    "restrict_to_loopback",
    "streaming_options",
]

RAY_VERSION = "2.60"

ALIVE = 0
"""State of a node in `GcsNodeInfo`."""


@dataclass(frozen=True)
class PrivateAttribute:
    """A private attribute of Ray that mtgen uses.

    Attributes:
        path: `module:name` or `module:Class.name`.
        purpose: what mtgen needs it for.
        until: the change in Ray that would replace it; `ray#N` and `pytorch#N` are upstream issues and pull requests.
        set_by_constructor: only instances have it.
    """

    path: str
    purpose: str
    until: str
    set_by_constructor: bool = False


_TRAIN = "ray.train.v2._internal"
_TRAINER = "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer"
_GROUP = f"{_TRAIN}.execution.worker_group:WorkerGroup"
_SCALING = f"{_TRAIN}.execution.scaling_policy"

_FAILURES = f"{_TRAIN}.execution.failure_handling"

_IN_DRIVER = (
    "runs Ray Train's controller in the driver: as an actor it is one more process that imports everything again",
    "Ray Train can run its controller in the calling process again, as RAY_TRAIN_RUN_CONTROLLER_AS_ACTOR=0 did "
    "(ray#49522, removed by ray#55556)",
)
_NO_CLEANER = (
    "left out: its detached actor is a process per run, and a placement group ends with the driver, which owns it",
    "one cleaner serves all runs (ray#65443), or an option switches it off (it was added by ray#58515)",
)
_NO_AUTOSCALER = (
    "starts no process that requests resources from an autoscaler, which a run's own cluster does not have",
    "FixedScalingPolicy registers with the AutoscalingCoordinator only if there is an autoscaler (ray#61703)",
)
_DRAIN = (
    "gives and hears the notice that a node will leave, so that a run writes a checkpoint before",
    "`ray drain-node` and the state of nodes become public; Ray Train's watcher asks for no checkpoint",
)
_RATE = (
    "counts restarts as a rate that progress resets, and ends at once where another start would not help",
    "FailureConfig takes a window, or a policy of one's own; no upstream issue was found",
)
_ELASTIC = (
    "limits elastic runs to worker counts that divide a step evenly, and saves a checkpoint before they grow",
    "ScalingConfig takes a list of worker counts, and a callback can delay a resize (ray#60721 has neither)",
)

PRIVATE_ATTRIBUTES = (
    PrivateAttribute(
        "ray._raylet:GcsClient",
        "asks a cluster whether it accepts the token; ray.init retries a rejected one for half a minute",
        "ray.init(address=...) fails at once on a rejected token (token authentication came with ray#57835)",
    ),
    PrivateAttribute(
        "ray._private.state:available_resources_per_node",
        "counts what is free on each node, on a cluster that others use too",
        "ray.available_resources() says it per node; no upstream issue was found",
    ),
    PrivateAttribute("ray._private.state:GlobalState.get_draining_nodes", *_DRAIN),
    PrivateAttribute("ray.core.generated.autoscaler_pb2:DrainNodeReason", *_DRAIN),
    PrivateAttribute("ray._raylet:GcsClient", *_DRAIN),
    PrivateAttribute(
        "ray._private.ray_constants:ENABLE_RAY_CLUSTER",
        "keeps a cluster on this system on loopback where Ray was imported before its environment variable was set",
        "ray.init accepts a loopback address as the node's own (ray#26293, ray#59110)",
    ),
    PrivateAttribute(
        "ray.train.torch.config:_TorchBackend.on_start",
        "binds the store of the process group to one address; torch binds it to every address (pytorch#173909)",
        "TorchConfig accepts a store, or TCPStore binds to the address that it is given",
    ),
    PrivateAttribute(f"{_TRAIN}.execution.controller:TrainController.worker_group_cls", *_IN_DRIVER),
    PrivateAttribute(f"{_TRAIN}.execution.controller:TrainController.run", *_IN_DRIVER),
    PrivateAttribute(f"{_TRAIN}.execution.controller:TrainController.get_result", *_IN_DRIVER),
    PrivateAttribute(f"{_TRAINER}._initialize_and_run_controller", *_IN_DRIVER),
    PrivateAttribute(f"{_GROUP}._init_train_context_on_workers", *_IN_DRIVER),
    PrivateAttribute(f"{_GROUP}._decorate_worker_log_file_paths", *_IN_DRIVER),
    PrivateAttribute(f"{_GROUP}._train_run_context", *_IN_DRIVER, set_by_constructor=True),
    PrivateAttribute(f"{_GROUP}._storage_context", *_IN_DRIVER, set_by_constructor=True),
    PrivateAttribute(f"{_GROUP}._worker_callbacks_to_propagate", *_IN_DRIVER, set_by_constructor=True),
    PrivateAttribute(f"{_TRAINER}._create_default_callbacks", *_NO_CLEANER),
    PrivateAttribute(f"{_TRAIN}.callbacks.placement_group_callback:PlacementGroupCleanerCallback", *_NO_CLEANER),
    PrivateAttribute(
        f"{_TRAIN}.callbacks.datasets:DatasetsCallback",
        "left out: it starts a process that serves Ray's own data sets, of which mtgen has none",
        "Ray Train starts it only where `datasets` are given; no upstream issue was found",
    ),
    PrivateAttribute(f"{_SCALING}:FixedScalingPolicy.after_controller_start", *_NO_AUTOSCALER),
    PrivateAttribute(f"{_SCALING}:FixedScalingPolicy._maybe_send_resource_request", *_NO_AUTOSCALER),
    PrivateAttribute(f"{_SCALING}:ElasticScalingPolicy._count_possible_workers", *_ELASTIC),
    PrivateAttribute(f"{_SCALING}:ElasticScalingPolicy.make_decision_for_non_running_worker_group", *_ELASTIC),
    PrivateAttribute(f"{_SCALING}:ElasticScalingPolicy.make_decision_for_running_worker_group", *_ELASTIC),
    PrivateAttribute(f"{_FAILURES}.default:DefaultFailurePolicy.make_decision", *_RATE),
    PrivateAttribute(f"{_FAILURES}.default:_is_preemption_failure", *_RATE),
    PrivateAttribute(f"{_FAILURES}.failure_policy:FailureDecision", *_RATE),
    PrivateAttribute(f"{_TRAIN}.exceptions:UserExceptionWithTraceback._base_exc", *_RATE, set_by_constructor=True),
    PrivateAttribute(f"{_SCALING}:NoopDecision", *_ELASTIC),
    PrivateAttribute(f"{_SCALING}:ResizeDecision", *_ELASTIC),
)
"""All private attributes; the option in `streaming_options` is an argument and therefore not among them."""


def require(attribute: PrivateAttribute) -> None:
    """Check that the installed Ray has an attribute.

    Raises:
        UserError: it does not; the message names the installed version and the one that mtgen needs.
    """
    module, _, names = attribute.path.partition(":")
    *owners, name = names.split(".")
    try:
        owner = reduce(getattr, owners, importlib.import_module(module))
        there = (
            name in vars(owner)["__init__"].__code__.co_names if attribute.set_by_constructor else hasattr(owner, name)
        )
    except (ImportError, AttributeError, KeyError):
        there = False
    if not there:
        raise UserError(
            f"ray=={ray.__version__}: {attribute.path} does not exist; mtgen is written against Ray {RAY_VERSION}: "
            f"pip install 'ray[default,train]=={RAY_VERSION}.*'"
        )


for _attribute in PRIVATE_ATTRIBUTES:
    require(_attribute)


def check_token(address: str, timeout: int = 30) -> None:
    """Send a request to the cluster at `address` (HOST:PORT), which answers it only if the token is valid.

    Raises:
        Exception: whatever Ray raises; `AuthenticationError` where the token is missing or rejected.
    """
    GcsClient(address=address).internal_kv_keys(b"mtgen", namespace=None, timeout=timeout)


def available_resources() -> list[dict[str, float]]:
    """The resources of each node that are not in use; Ray's public function has the sums over all nodes only."""
    return [dict(node) for node in available_resources_per_node().values()]


def draining_nodes() -> dict[str, int]:
    """Ids of the nodes that have given notice, with the time at which they leave, milliseconds since 1970."""
    return dict(ray_state.get_draining_nodes())


def drain_node(address: str, ports: set[int], seconds: int) -> bool:
    """Give notice for a node: it takes no new work, and leaves in `seconds`, or at once if nothing runs there.

    Args:
        address: HOST:PORT of the head.
        ports: of which one is that of the node's raylet.

    Returns:
        Whether the cluster knows the node and takes the notice.
    """
    client = GcsClient(address=address)
    nodes = client.get_all_node_info().items()
    found = [
        node.hex()
        for node, information in nodes
        if information.node_manager_port in ports and information.state == ALIVE
    ]
    deadline = round(1000 * (time.time() + seconds))
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    return len(found) == 1 and bool(client.drain_node(found[0], reason, "preempted", deadline)[0])


def restrict_to_loopback(loopback: bool) -> None:
    """Decide whether a cluster that this process starts or joins is on loopback.

    Ray reads RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER when it is imported, which may have been before it was set.
    """
    ray_constants.ENABLE_RAY_CLUSTER = not loopback


def streaming_options(prefetch: int) -> dict[str, Any]:
    """Options of a remote generator that computes at most `prefetch` results ahead of the caller.

    The limit has a private name because it is experimental (ray#40285). Ray itself rejects unknown options.
    """
    return {"num_returns": "streaming", "_generator_backpressure_num_objects": prefetch}


class NoAutoscaling(FixedScalingPolicy):
    """A fixed number of workers on the run's own cluster, without requests to an autoscaler."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start no client of the autoscaler."""

    def _maybe_send_resource_request(self) -> None:
        """Send nothing."""


class ElasticPolicy(ElasticScalingPolicy):
    """Ray Train's elastic policy, restricted by `resize` to certain worker counts and to resizes after a checkpoint."""

    def __init__(self, scaling_config: Any, resize: "ElasticResize[ResizeDecision]") -> None:
        super().__init__(scaling_config)
        self._resize = resize

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        return self._resize.largest_count(super()._count_possible_workers(reserved_resources))

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """How many workers to start with, at first and after a loss."""
        self._resize.forget()
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Whether to restart with more workers: once the running ones have saved a checkpoint."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision) and decision.num_workers > worker_group_state.num_workers:
            self._resize.request(decision)
        return self._resize.take() or NoopDecision()


class FailureRate(DefaultFailurePolicy):
    """Ray Train's failure policy, whose number of lost workers is limited by a `RestartBudget`."""

    def __init__(self, failure_config: Any, budget: RestartBudget) -> None:
        super().__init__(failure_config)
        self._budget = budget

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Whether the workers are replaced; preempted ones always are, those that raised a `FolderNotShared` never."""
        decision = super().make_decision(training_failed_error)
        if not isinstance(training_failed_error, WorkerGroupError) or decision != FailureDecision.RETRY:
            return decision
        if folder_problem(training_failed_error) is not None:
            return FailureDecision.RAISE
        spent = not _is_preemption_failure(training_failed_error) and not self._budget.spend()
        return FailureDecision.RAISE if spent else decision


def folder_problem(error: BaseException) -> FolderNotShared | None:
    """The `FolderNotShared` that a worker raised."""
    raised = [getattr(own, "_base_exc", own) for own in getattr(error, "worker_failures", {}).values()]
    return next((own for own in raised if isinstance(own, FolderNotShared)), None)


class DriverLedWorkerGroup(WorkerGroup):
    """Ray Train's worker group for a controller that is not an actor.

    Workers get no handle of the controller, through which they could ask for reported checkpoints.
    """

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        shared = {
            "train_run_context": self._train_run_context,
            "storage_context": self._storage_context,
            "worker_callbacks": self._worker_callbacks_to_propagate,
            "synchronization_actor": sync_actor,
            "controller_actor": None,
        }
        own = ({name: values[place] for name, values in train_context_args.items()} for place in range(len(workers)))
        ray.get(
            [
                worker.actor.init_train_context.remote(distributed_context=worker.distributed_context, **shared, **more)
                for worker, more in zip(workers, own, strict=True)
            ]
        )
        self._decorate_worker_log_file_paths(workers)


class DriverLedController(TrainController):
    """Ray Train's controller, in the process that calls it."""

    worker_group_cls = DriverLedWorkerGroup


class DriverTrainer(TorchTrainer):
    """Ray Train's trainer, led from the calling process, on any of several worker counts.

    Args:
        counts: possible numbers of workers, ascending; a single one is fixed.
        folder: folder of the run.
        own_cluster: whether the cluster is the run's own and therefore has no autoscaler.
        budget: limits how often lost workers are replaced.
    """

    def __init__(
        self,
        train_loop_per_worker: Callable[[dict[str, Any]], None],
        *,
        counts: list[int],
        folder: Path,
        own_cluster: bool,
        budget: RestartBudget,
        **settings: Any,
    ) -> None:
        super().__init__(train_loop_per_worker, **settings)
        self._counts = counts
        self._folder = folder
        self._own_cluster = own_cluster
        self._budget = budget

    def _create_default_callbacks(self) -> list[Any]:
        made: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # typed as Ray Train 1's trainer; it is 2's
        return [
            callback for callback in made if not isinstance(callback, DatasetsCallback | PlacementGroupCleanerCallback)
        ]

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        scaling: Any = self.scaling_config
        if len(self._counts) > 1:
            settings["scaling_policy"] = ElasticPolicy(scaling, ElasticResize(self._counts, self._folder))
        elif self._own_cluster:
            settings["scaling_policy"] = NoAutoscaling(scaling)
        settings["failure_policy"] = FailureRate(self.run_config.failure_config, self._budget)
        controller = DriverLedController(**settings)
        asyncio.run(controller.run())
        result: Any = controller.get_result()
        return result
