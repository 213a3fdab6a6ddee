"""launch/kuberay.yaml is a valid RayJob, agrees with the commands, and its hook makes a run write a checkpoint."""

import copy
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from helpers.commands import ROOT, checkpoints, furnish, look
from typer.testing import CliRunner

from mtgen.cli import app
from mtgen.errors import ConfigError
from mtgen.launchers import ray_jobs
from mtgen.version import __version__

MANIFEST = yaml.safe_load((ROOT / "launch/kuberay.yaml").read_text(encoding="utf-8"))
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
        ("name",), name={"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?$"}, labels=TEXTS
    ),
    spec=exactly(
        ("entrypoint", "rayClusterSpec"),
        suspend=TRUE,
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
    assert SPEC["entrypoint"].startswith("python -m mtgen.cli train digits-32 ") and "runs=/runs " in SPEC["entrypoint"]


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


def written(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    """The objects of the manifest that `mtgen kube` writes."""
    out = tmp_path / "job.yaml"
    ended = CliRunner().invoke(app, ["kube", *words, "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    return list(yaml.safe_load_all(out.read_text(encoding="utf-8")))


def test_the_shipped_manifest_is_what_the_command_in_it_writes(tmp_path: Path) -> None:
    text = (ROOT / "launch/kuberay.yaml").read_text(encoding="utf-8")
    (command,) = [line.partition("mtgen kube ")[2] for line in text.splitlines() if "mtgen kube " in line]
    written(tmp_path, *command.split())
    assert (tmp_path / "job.yaml").read_text(encoding="utf-8").replace(
        str(tmp_path / "job.yaml"), "launch/kuberay.yaml"
    ) == text


def test_a_configuration_of_ones_own_goes_along_and_is_found_in_every_pod(tmp_path: Path) -> None:
    shutil.copy(ROOT / "configs/digits-32.yaml", tmp_path / "mine.yaml")
    words = ("data.path=/data/a b", "name=My_run.1", "workers=9", "--pods", "4", "--queue", "gpus")
    job, config = written(tmp_path, str(tmp_path / "mine.yaml"), *words)
    jsonschema.Draft202012Validator(RAY_JOB).validate(job)
    kubernetes_validate.validate(config, KUBERNETES, strict=True)
    assert job["metadata"] == {"name": "my-run-1", "labels": {"kueue.x-k8s.io/queue-name": "gpus"}}
    assert config["metadata"]["name"] == "my-run-1-config" and job["spec"]["suspend"]
    entrypoint = shlex.split(job["spec"]["entrypoint"].partition("&&")[0])
    assert entrypoint[3:8] == ["train", "/etc/mtgen/My_run.1.yaml", "workers=4", "data.path=/data/a b", "name=My_run.1"]
    original = yaml.safe_load((ROOT / "configs/digits-32.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(config["data"]["My_run.1.yaml"]) == original
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert group["replicas"] == 3
    for template in (cluster["headGroupSpec"]["template"], group["template"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        (container,) = template["spec"]["containers"]
        assert "nvidia.com/gpu" not in container["resources"]["limits"] and container["image"].endswith("-cpu")
        assert {"name": "config", "mountPath": "/etc/mtgen"} in container["volumeMounts"]
        assert {"name": "config", "configMap": {"name": "my-run-1-config"}} in template["spec"]["volumes"]


@pytest.mark.parametrize("wrong", ["--memory=much", "--queue=My queue", "--image=a b", "--cache=-1Gi"])
def test_what_kubernetes_would_reject_is_named(wrong: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(
        app, ["kube", "digits-32", "data.path=/data/d", wrong, "--out", str(tmp_path / "j.yaml")]
    )
    assert isinstance(ended.exception, ConfigError) and wrong.replace("=", " ", 1) in str(ended.exception)


def swap(text: str, old: str, new: object) -> str:
    assert old in text
    return text.replace(old, str(new))


@pytest.mark.e2e
def test_the_hook_ends_a_run_with_a_checkpoint_and_the_entrypoint_then_asks_to_be_started_again(tmp_path: Path) -> None:
    place = furnish(tmp_path)
    entrypoint = swap(SPEC["entrypoint"], "workers=2 data.path=/data/digits runs=/runs", "$SETTINGS")
    entrypoint = swap(swap(entrypoint, "/tmp/outcome.json", place / "outcome.json"), "digits-32", "run.yaml")  # noqa: S108
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
