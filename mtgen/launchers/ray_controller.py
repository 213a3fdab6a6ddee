"""Ray Train, led from this process: its own way is one more, which first imports all that this one has imported."""

import asyncio
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.result import Result

from mtgen.launchers.elastic import ElasticPolicy


class NoAutoscaling(FixedScalingPolicy):
    """A fixed number of workers on a cluster of their own: the autoscaler, whom one more process would ask for room, has none to give."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask nobody."""

    def _maybe_send_resource_request(self) -> None:
        """Ask nobody."""


class DriverLedWorkerGroup(WorkerGroup):
    """Ray Train's group of workers, led by a process that is no actor of Ray's, so that there is none to ask for reported checkpoints."""

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


class RayTrainer(TorchTrainer):
    """Ray Train's trainer on any of several numbers of workers.

    Without what serves Ray's own data sets, and what tidies up behind a controller of its own: a process each.

    Args:
        counts: numbers of workers, ascending; a single one is a fixed number.
        folder: the run's.
        own: whether the cluster is the run's own, and has no autoscaler.
    """

    def __init__(self, counts: list[int], folder: Path, own: bool, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._counts = counts
        self._folder = folder
        self._own = own

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        made: list[RayTrainCallback] = super()._create_default_callbacks()  # type: ignore[misc]  # as below
        return [
            callback for callback in made if not isinstance(callback, DatasetsCallback | PlacementGroupCleanerCallback)
        ]

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        if len(self._counts) > 1:
            settings["scaling_policy"] = ElasticPolicy(self.scaling_config, self._counts, self._folder)  # type: ignore[arg-type]  # typed as Ray Train 1's; it is 2's
        elif self._own:
            settings["scaling_policy"] = NoAutoscaling(self.scaling_config)  # type: ignore[arg-type]  # as above
        controller = DriverLedController(**settings)
        asyncio.run(controller.run())
        return controller.get_result()
