"""A run as a RayJob of KubeRay: the manifest that Kubernetes takes."""

import re
import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from textwrap import indent

from mtgen.config import Config
from mtgen.errors import ConfigError
from mtgen.version import __version__

_QUANTITY = r"[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?"
CONFIG_FOLDER = "/etc/mtgen"
"""Where a Pod finds a configuration that does not ship with mtgen."""


@dataclass(frozen=True)
class PodRequest:
    """What a run requests from Kubernetes; resources are those of each Pod.

    Attributes:
        pods: each on a node of its own as far as its resources fill the node; the first is Ray's head and trains too.
        gpus: each with one worker; 0: train on CPUs, one worker per Pod.
        data_claim, runs_claim: PersistentVolumeClaims that are mounted at /data and /runs.
        queue: local queue of Kueue, which starts the job when all its Pods fit; "" without Kueue.
    """

    pods: int
    gpus: int
    cpus: int
    memory: str
    image: str
    data_claim: str = "mtgen-data"
    runs_claim: str = "mtgen-runs"
    cache: str = "50Gi"
    shared_memory: str = "8Gi"
    queue: str = ""

    def __post_init__(self) -> None:
        for name in ("memory", "cache", "shared_memory"):
            if not re.fullmatch(_QUANTITY, value := getattr(self, name)):
                raise ConfigError(
                    f"--{name.replace('_', '-')} {value}: not an amount of memory; write one such as 32Gi"
                )
        for name in ("data_claim", "runs_claim", "queue"):
            if (value := getattr(self, name)) and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?", value):
                raise ConfigError(
                    f"--{name.replace('_', '-')} {value}: not a name in Kubernetes; write lower-case letters, digits "
                    "and '-'"
                )
        if not re.fullmatch(r"[\w.:/@-]+", self.image):
            raise ConfigError(f"--image {self.image}: not an image; write one such as registry.example/mtgen:TAG")

    @property
    def workers(self) -> int:
        """Number of workers of the run."""
        return self.pods * max(self.gpus, 1)


def job_name(run: str) -> str:
    """The name of a run's RayJob: that of the run, in the letters that Kubernetes allows."""
    return re.sub("[^a-z0-9]+", "-", run.lower()).strip("-")[:47].strip("-")  # KubeRay appends to names of 47


def manifest(config: Config, path: Path, words: list[str], request: PodRequest, command: str, file: str) -> str:
    """The manifest of a run.

    Args:
        config: the run's, for its name.
        path: the configuration's file.
        words: KEY=VALUE, as a Pod sees paths.
        command, file: the command that writes the manifest, and to which file, for the comments.
    """
    shipped = _is_shipped(path)
    source = path.stem if shipped else f"{CONFIG_FOLDER}/{config.name}.yaml"
    given = [word for word in words if word.partition("=")[0] not in ("workers", "runs")]
    train = shlex.join([source, f"workers={request.workers}", *given, "runs=/runs"])
    each = "no GPU" if not request.gpus else "a GPU each" if request.gpus == 1 else f"{request.gpus} GPUs each"
    job = job_name(config.name)
    template = resources.files("mtgen.launchers").joinpath("kuberay.yaml").read_text(encoding="utf-8")
    return Template(template).substitute(
        pods=f"{request.pods} pod{'s' * (request.pods > 1)} with {each}",
        command=command,
        file=file,
        job=job,
        labels=f"  labels:\n    kueue.x-k8s.io/queue-name: {request.queue}\n" * bool(request.queue),
        suspend="spec:\n" + "  suspend: true  # Kueue starts the job when all its pods fit\n" * bool(request.queue),
        train=train,
        version=__version__,
        run=config.name,
        image=request.image,
        cpus=request.cpus,
        memory=request.memory,
        gpus=f'                  nvidia.com/gpu: "{request.gpus}"\n' * bool(request.gpus),
        data_claim=request.data_claim,
        runs_claim=request.runs_claim,
        cache=request.cache,
        shared_memory=request.shared_memory,
        others=request.pods - 1,
        mount=indent("- name: config\n  mountPath: " + CONFIG_FOLDER + "\n", " " * 16) * (not shipped),
        volume=indent(f"- name: config\n  configMap:\n    name: {job}-config\n", " " * 12) * (not shipped),
        config_map="" if shipped else _config_map(job, config.name, path),
    )


def _is_shipped(path: Path) -> bool:
    from mtgen.config.presets import list_presets

    return any(path.resolve() == own.resolve() for own in list_presets().values())


def _config_map(job: str, run: str, path: Path) -> str:
    """The configuration, as a second object of the manifest."""
    text = indent(path.read_text(encoding="utf-8"), "    ", lambda line: bool(line.strip()))
    return f"""---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {job}-config
data:
  {run}.yaml: |
{text}"""
