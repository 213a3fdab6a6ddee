"""A run as a RayJob of KubeRay: the manifest, which starts a Ray cluster of pods and trains on it."""

import re
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any

import yaml

from mtgen.config import Config, validate
from mtgen.config.paths import absolute
from mtgen.errors import ConfigError
from mtgen.launchers.ray_jobs import STOP_GRACE_SECONDS
from mtgen.utils.yaml_text import override, read_yaml
from mtgen.version import __version__

RUNS = "/runs"
"""Where the pods see the claim of runs."""

HOOK_SECONDS = 60
"""Seconds that a pod has to end after its run has written a checkpoint."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([KMGT]i?)?")
_IMAGE = re.compile(r"[\w.:/@-]+")

MAX_JOB_NAME = 47
"""Longest name of a RayJob, characters: KubeRay appends to it for the names of pods."""

_WORKERS = """    workerGroupSpecs:
      - groupName: workers
        replicas: {count}
        minReplicas: {count}
        maxReplicas: {count}
        rayStartParams: *ray
        template: *pod
"""


@dataclass(frozen=True)
class KubeResources:
    """The resources that a run requests from Kubernetes.

    Attributes:
        pods: pods that train; the first is Ray's head.
        gpus: GPUs of each pod, each with one worker; 0: one worker per pod, on CPUs.
        cpus: CPUs of each pod.
        memory: memory of each pod in Kubernetes's notation (`32Gi`).
        spares: further pods without work, so that workers find room when they start again after one is lost.
        image: image of all pods; `None`: that of launch/Dockerfile, as it is named there.
        data_claim, runs_claim: persistent volume claims, mounted at /data and /runs.
        secret: secret with the cluster's token (`auth_token`).
        queue: Kueue's local queue that admits the job; `None`: it starts at once.
    """

    pods: int
    gpus: int
    cpus: int
    memory: str
    spares: int = 0
    image: str | None = None
    data_claim: str = "mtgen-data"
    runs_claim: str = "mtgen-runs"
    secret: str = "mtgen-ray-token"  # noqa: S105 - the name of a secret
    queue: str | None = None

    def __post_init__(self) -> None:
        for option, value in (
            ("data-claim", self.data_claim),
            ("runs-claim", self.runs_claim),
            ("secret", self.secret),
            ("queue", self.queue),
        ):
            if value is not None and not _NAME.fullmatch(value):
                raise ConfigError(f"--{option} {value}: not a name in Kubernetes: small letters, digits and -")
        if not _QUANTITY.fullmatch(self.memory):
            raise ConfigError(f"--memory {self.memory}: not a quantity; write one such as 32Gi")
        if self.image is not None and not _IMAGE.fullmatch(self.image):
            raise ConfigError(f"--image {self.image}: not an image; write one such as registry.example/mtgen:cuda")

    @property
    def workers(self) -> int:
        """Workers of the whole run."""
        return self.pods * max(self.gpus, 1)


def kube_config(path: Path, assignments: list[str], request: KubeResources) -> Config:
    """The configuration as the pods read it.

    Raises:
        ConfigError: one line for each invalid key, and for each path that pods cannot have.
    """
    values = read_yaml(path)
    override(values, [f"runs={RUNS}", *assignments, f"workers={request.workers}"])
    config = validate(values)
    outside = [
        f"{key}={value}: pods do not see this path; give one below /data or {RUNS}, or a URL"
        for key, value in _relative(config.model_dump(), absolute(config).model_dump())
    ]
    if not Path(config.runs).is_relative_to(RUNS):
        outside.append(f"runs={config.runs}: pods keep runs in the claim that they see at {RUNS}; leave this key out")
    if outside:
        raise ConfigError("\n".join(outside))
    return config


def _relative(given: Any, found: Any, key: str = "") -> list[tuple[str, Any]]:
    """The keys whose values differ, with the values as they were given."""
    if isinstance(given, dict):
        return [item for name in given for item in _relative(given[name], found[name], f"{key}.{name}".lstrip("."))]
    if isinstance(given, list):
        return [
            item for n, pair in enumerate(zip(given, found, strict=True)) for item in _relative(*pair, f"{key}.{n}")
        ]
    return [] if given == found else [(key, given)]


def job_name(run: str) -> str:
    """A run's name as Kubernetes takes it."""
    return re.sub("[^a-z0-9]+", "-", run.lower())[:MAX_JOB_NAME].strip("-") or "run"


def manifest(config: Config, request: KubeResources, file: str) -> str:
    """The configuration as a ConfigMap, and the RayJob that trains it.

    Args:
        config: what `kube_config` returns.
        file: name of the manifest, for the commands in its head.
    """
    job, others = job_name(config.name), request.pods - 1 + request.spares
    each = f"{request.gpus} GPU{'s' * (request.gpus != 1)}" if request.gpus else f"{request.cpus} CPUs"
    spares = f"; {request.spares} of them stand{'s' * (request.spares == 1)} by" if request.spares else ""
    values = config.model_dump(mode="json", exclude_unset=True, exclude={"address"})
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    template = resources.files("mtgen.launchers").joinpath("rayjob.yaml").read_text(encoding="utf-8")
    return Template(template).substitute(
        run=config.name,
        folder=f"{config.folder}",
        job=job,
        file=file,
        summary=f"{others + 1} pod{'s' * (others > 0)} with {each} each{spares}",
        config="\n".join(f"    {line}" for line in text.splitlines()),
        labels=f'\n  labels:\n    kueue.x-k8s.io/queue-name: "{request.queue}"' if request.queue else "",
        grace=STOP_GRACE_SECONDS,
        grace_pod=STOP_GRACE_SECONDS + HOOK_SECONDS,
        version=__version__,
        ray=metadata.version("ray"),
        secret=request.secret,
        image=request.image or f"mtgen:{__version__}-{'cuda' if request.gpus else 'cpu'}",
        cpus=request.cpus,
        memory=request.memory,
        gpus=f'\n                  nvidia.com/gpu: "{request.gpus}"' if request.gpus else "",
        data_claim=request.data_claim,
        runs_claim=request.runs_claim,
        workers=_WORKERS.format(count=others) if others else "",
    )
