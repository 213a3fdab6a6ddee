"""`mtgen kube` writes a valid RayJob that agrees with the commands, and its hook makes a run write a checkpoint."""

import copy
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from helpers.commands import ROOT, checkpoints, furnish, look
from typer.testing import CliRunner

from mtgen.cli import app
from mtgen.config import load, validate
from mtgen.errors import ConfigError
from mtgen.launchers import ray_jobs
from mtgen.version import __version__

CONFIG_MAP, MANIFEST = yaml.safe_load_all((ROOT / "launch/kuberay.yaml").read_text(encoding="utf-8"))
SPEC = MANIFEST["spec"]
CLUSTER = SPEC["rayClusterSpec"]
PODS = {
    "head": CLUSTER["headGroupSpec"]["template"],
    **{group["groupName"]: group["template"] for group in CLUSTER["workerGroupSpecs"]},
}
KUBERNETES = "1.37"
TEXT = {"type": "string"}
WHOLE = {"type": "integer"}
TRUE = {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def exactly(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """The schema of an object that has no other fields than these."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


GROUP = {"rayStartParams": TEXTS, "template": exactly(("spec",), metadata={"type": "object"}, spec={"type": "object"})}
RAY_JOB = exactly(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=exactly(
        ("name",), labels=TEXTS, name={"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}
    ),
    spec=exactly(
        ("entrypoint", "rayClusterSpec"),
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        metadata=TEXTS,
        backoffLimit={**WHOLE, "minimum": 0},
        shutdownAfterJobFinishes=TRUE,
        ttlSecondsAfterFinished={**WHOLE, "minimum": 0},
        rayClusterSpec=exactly(
            ("headGroupSpec",),
            rayVersion=TEXT,
            authOptions=exactly(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
            headGroupSpec=exactly(("template",), **GROUP),
            workerGroupSpecs={
                "type": "array",
                "items": exactly(
                    ("groupName", "minReplicas", "maxReplicas", "template"),
                    groupName=TEXT,
                    replicas=WHOLE,
                    minReplicas=WHOLE,
                    maxReplicas=WHOLE,
                    **GROUP,
                ),
            },
        ),
    ),
)
"""The fields that the manifest uses, with their types, as the API reference of KubeRay 1.7 has them. KubeRay's whole
schema is in no package; what is in the Pods is validated against that of Kubernetes. A cluster has the last word:
`kubectl apply --dry-run=server`."""


def test_the_manifest_is_a_ray_job() -> None:
    jsonschema.Draft202012Validator(RAY_JOB).validate(MANIFEST)


@pytest.mark.parametrize("name", PODS)
def test_its_pods_are_pods(name: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **PODS[name]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    "path", [("backoffLimit",), ("rayClusterSpec", "headGroupSpec", "template", "spec", "volumes")]
)
def test_a_field_of_another_name_would_be_found(path: tuple[str, ...]) -> None:
    manifest = copy.deepcopy(MANIFEST)
    inner = manifest["spec"]
    for key in path[:-1]:
        inner = inner[key]
    inner[f"{path[-1]}s"] = inner.pop(path[-1])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(RAY_JOB).validate(manifest)
        template = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "head"}, **template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_job_has_the_environment_and_the_metadata_of_mtgen_submit() -> None:
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(ray_jobs.STOP_GRACE_SECONDS), "RAY_JOB_STOP_SIGNAL": "SIGINT"}
    assert yaml.safe_load(SPEC["runtimeEnvYAML"]) == {"env_vars": variables}
    assert SPEC["metadata"] == {"mtgen": __version__, "run": "digits-32", "folder": "/runs/digits-32"}
    assert SPEC["entrypoint"].startswith("python -m mtgen.cli train /config/run.yaml ")


def test_its_versions_are_those_of_the_project() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert f"ray=={CLUSTER['rayVersion']}" in lock
    assert {pod["spec"]["containers"][0]["image"] for pod in PODS.values()} == {f"mtgen:{__version__}-cuda"}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_takes_no_more_rights_than_it_needs_and_has_time_for_a_checkpoint(name: str) -> None:
    spec = PODS[name]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] and not container["securityContext"]["allowPrivilegeEscalation"]
    assert spec["terminationGracePeriodSeconds"] > ray_jobs.STOP_GRACE_SECONDS
    token = {"name": CLUSTER["authOptions"]["secretName"], "key": "auth_token"}
    assert {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": token}} in container["env"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"  # noqa: S108
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


@dataclass(frozen=True)
class Rendered:
    """What `mtgen kube` wrote, and what it said."""

    config: dict[str, Any]
    job: dict[str, Any]
    text: str
    said: str


def kube(folder: Path, *words: str) -> Rendered:
    out = folder / "job.yaml"
    result = CliRunner().invoke(app, ["kube", *words, "--out", str(out)])
    assert result.exit_code == 0, result.output
    config, job = yaml.safe_load_all(text := out.read_text(encoding="utf-8"))
    return Rendered(yaml.safe_load(config["data"]["run.yaml"]), job, text, result.output)


def test_the_example_is_what_the_command_writes(tmp_path: Path) -> None:
    found = kube(tmp_path, "digits-32", "data.path=/data/digits", "--pods", "2")
    example = (ROOT / "launch/kuberay.yaml").read_text(encoding="utf-8")
    assert found.text.replace(str(tmp_path / "job.yaml"), "launch/kuberay.yaml") == example


def test_the_configuration_that_pods_read_is_the_one_that_was_given() -> None:
    values = yaml.safe_load(CONFIG_MAP["data"]["run.yaml"])
    overrides = ["workers=2", "data.path=/data/digits", "runs=/runs"]
    assert validate(values) == load(ROOT / "configs/digits-32.yaml", overrides)
    assert CONFIG_MAP["metadata"]["name"] == PODS["head"]["spec"]["volumes"][0]["configMap"]["name"]


def test_pods_without_gpus_with_spares_and_a_queue(tmp_path: Path) -> None:
    words = (
        "digits-32",
        "name=My_run",
        "data.path=s3://bucket/digits",
        "batch_size=33",
        "--pods",
        "3",
        "--gpus-per-pod",
        "0",
    )
    found = kube(tmp_path, *words, "--spares", "1", "--queue", "team", "--image", "registry.example/mtgen:1")
    jsonschema.Draft202012Validator(RAY_JOB).validate(found.job)
    assert found.job["metadata"] == {"name": "my-run", "labels": {"kueue.x-k8s.io/queue-name": "team"}}
    assert found.config["workers"] == 3 and found.config["runs"] == "/runs" and "4 pods, 3 workers" in found.said
    (group,) = found.job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 3
    pod = group["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "8", "memory": "32Gi"}
    assert "touch /runs/My_run/stop" in pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    template = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}
    kubernetes_validate.validate(template, KUBERNETES, strict=True)


def test_a_name_that_yaml_takes_for_a_number_stays_text(tmp_path: Path) -> None:
    found = kube(tmp_path, "digits-32", "name=2026", "data.path=/data/digits")
    jsonschema.Draft202012Validator(RAY_JOB).validate(found.job)
    assert found.job["spec"]["metadata"]["run"] == "2026" and found.job["metadata"]["name"] == "2026"
    assert found.config["name"] == "2026"


def test_one_pod_has_no_worker_group_and_trains_on_all_its_gpus(tmp_path: Path) -> None:
    found = kube(tmp_path, "digits-32", "data.path=/data/digits", "--gpus-per-pod", "8")
    assert "workerGroupSpecs" not in found.job["spec"]["rayClusterSpec"] and found.config["workers"] == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "data.path=data_shards/digits: pods do not see this path"),
        (("data.path=/data/d", "runs=/elsewhere"), "runs=/elsewhere: pods keep runs"),
        (("data.path=/data/d", "runs=/runs-of-others"), "runs=/runs-of-others: pods keep runs"),
        (("data.path=/data/d", "--memory", "much"), "--memory much: not a quantity"),
        (("data.path=/data/d", "--queue", "A B"), "--queue A B: not a name"),
        (("data.path=/data/d", "--image", "a b"), "--image a b: not an image"),
        (("data.path=/data/d", "batch_sise=3"), "batch_sise"),
    ],
)
def test_what_pods_could_not_use_is_one_error(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, ["kube", "digits-32", *words, "--out", str(tmp_path / "job.yaml")])
    assert isinstance(result.exception, ConfigError) and said in str(result.exception)
    assert not (tmp_path / "job.yaml").exists()


def swap(text: str, old: str, new: object) -> str:
    assert old in text
    return text.replace(old, str(new))


@pytest.mark.e2e
def test_the_hook_ends_a_run_with_a_checkpoint_and_the_entrypoint_then_asks_to_be_started_again(tmp_path: Path) -> None:
    place = furnish(tmp_path)
    entrypoint = swap(SPEC["entrypoint"], "/config/run.yaml", "run.yaml $SETTINGS")
    entrypoint = swap(entrypoint, "/tmp/outcome.json", place / "outcome.json")  # noqa: S108
    hook = PODS["head"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "MTGEN_CACHE": str(place / "cache")}

    def start(settings: str) -> "subprocess.Popen[bytes]":
        words = ["sh", "-c", entrypoint]
        return subprocess.Popen(words, cwd=place, env={**environment, "SETTINGS": settings}, start_new_session=True)

    with start("train.images=1000000") as job:
        while not checkpoints(place, "run"):
            assert job.poll() is None
        script = swap(swap(hook[-1], "/runs/digits-32", place / "runs/run"), "sleep 15", "true")
        script = swap(script, "pgrep", f"pgrep --session {job.pid}")  # others train on this machine too
        subprocess.run([*hook[:-1], script], check=True, timeout=300)
        assert job.wait(300) == 1
    at = int(checkpoints(place, "run")[-1].name)
    assert at < 1_000_000 and not (place / "runs/run/stop").exists()
    with start(f"train.images={at + 16}") as job:
        assert job.wait(300) == 0
    assert look(place, "run").starts == [0, at]
    subprocess.run([*hook[:-1], script], check=True, timeout=60)
    assert not (place / "runs/run/stop").exists()  # where nothing trains any more, it asks for nothing
