"""The doctor finds what this system has, and the fix for one that is broken on purpose."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import toy
from helpers.backbones import settings

from mtgen.preflight import doctor
from mtgen.preflight.doctor import CHECKS, GOOD, PROBLEM, WARNING, DoctorFinding, SystemUnderTest, run_checks

ROOT = Path(__file__).resolve().parents[2]


def look(check: str, system: SystemUnderTest) -> DoctorFinding:
    return run_checks(system, {check: CHECKS[check]})[0]


@pytest.fixture
def system(tmp_path: Path) -> SystemUnderTest:
    return SystemUnderTest(tmp_path / "runs", tmp_path / "cache", {})


def test_a_system_that_runs_these_tests_can_train(system: SystemUnderTest) -> None:
    found = {one.check: one for one in run_checks(system)}
    assert list(found) == list(CHECKS)
    assert [found[name].state for name in ("torch", "DeepSpeed", "DALI", "Ray", "MLflow", "file locks")] == [GOOD] * 6
    assert "2.13" in found["torch"].found


def test_the_backbone_of_a_configuration_is_opened(tmp_path: Path, system: SystemUnderTest) -> None:
    backbone = settings(tmp_path)
    system.config = toy.config(discriminator__backbone=backbone)
    good = look("backbone", system)
    assert good.state == GOOD and backbone["sha256"] in good.found and "[5, 3] channels" in good.found
    system.config = toy.config(discriminator__backbone=backbone | {"sha256": "0" * 64})
    bad = look("backbone", system)
    assert bad.state == PROBLEM and "has " + backbone["sha256"] in bad.found and "give the right file" in bad.remedy


def test_every_finding_has_its_consequence_and_every_problem_its_fix(system: SystemUnderTest) -> None:
    for one in run_checks(system):
        assert one.state == GOOD or one.means, one
        assert one.state not in (WARNING, PROBLEM) or one.remedy, one


def test_a_package_that_is_missing_or_of_another_version_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = doctor._library("torch", ("torch-is-not-called-so",), "training is not possible")
    assert (missing.state, missing.found, missing.remedy) == (PROBLEM, "not installed", "make setup")
    monkeypatch.setattr(doctor, "_version", lambda *names: ("torch", "1.0"))
    old = doctor._library("torch", ("torch",), "training is not possible")
    assert (old.state, old.found) == (WARNING, "torch 1.0")
    assert ">=2.13" in old.means


def test_a_cluster_and_a_server_that_do_not_answer_are_named_with_their_address(system: SystemUnderTest) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        system.environment |= {"RAY_ADDRESS": address, "MLFLOW_TRACKING_URI": f"http://{address}"}
        ray, mlflow = look("Ray", system), look("MLflow", system)
    assert ray.state == PROBLEM and address in ray.found and "unset RAY_ADDRESS" in ray.remedy
    assert mlflow.state == WARNING and address in mlflow.found and "MLFLOW_TRACKING_URI" in mlflow.remedy


def test_a_token_that_others_can_read_is_named(system: SystemUnderTest, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    system.environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    token.chmod(0o644)
    assert look("Ray's token", system).remedy == f"chmod 600 {token}"
    token.chmod(0o600)
    assert look("Ray's token", system).state == GOOD


def test_a_full_disk_is_a_problem(system: SystemUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_DISK_BYTES", 2**80)
    monkeypatch.setattr(doctor, "ENOUGH_DISK_BYTES", 2**80)
    found = look("disk of the cache", system)
    assert (found.state, "MTGEN_CACHE" in found.remedy, str(system.cache) in found.found) == (PROBLEM, True, True)


def test_more_threads_than_cpus_and_a_port_in_use_are_named(system: SystemUnderTest) -> None:
    system.environment["OMP_NUM_THREADS"] = "4096"
    assert look("threads", system).remedy == "unset OMP_NUM_THREADS"
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 6379))
        except OSError:
            pass  # another cluster listens there, which is as good
        assert "6379 (mtgen cluster head)" in look("ports", system).found


def test_a_check_that_hangs_is_a_finding_and_the_next_one_runs(system: SystemUnderTest) -> None:
    found = run_checks(system, {"a disk": lambda system: time.sleep(3600), "Python": CHECKS["Python"]}, limit=0.05)  # type: ignore[arg-type,return-value]
    assert [(one.check, one.state) for one in found] == [("a disk", PROBLEM), ("Python", GOOD)]
    assert "no answer in 0.05 s" in found[0].found


def test_the_command_exits_with_1_if_there_is_a_problem_and_writes_json(tmp_path: Path) -> None:
    environment = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "RAY_ADDRESS": "127.0.0.1:1",
    }
    command = [sys.executable, "-m", "mtgen.cli", "doctor", "--json", "found.json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "error: training cannot start until these are fixed: Ray\n")
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [row["check"] for row in rows] == list(CHECKS)


def test_no_large_library_is_imported() -> None:
    code = """
import sys
from mtgen.preflight.doctor import SystemUnderTest, run_checks
run_checks(SystemUnderTest())
print(*{name.split('.')[0] for name in sys.modules})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert not {"torch", "ray", "deepspeed", "mlflow", "nvidia"} & set(done.stdout.split())


def test_two_wheels_of_dali_at_once_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia_dali_cuda120", "nvidia_dali_cuda130"):
        written = tmp_path / f"{name}-2.4.0.dist-info" / "METADATA"
        written.parent.mkdir()
        written.write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 2.4.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = CHECKS["DALI"](SystemUnderTest(tmp_path, tmp_path, {}))
    assert (found.state, found.found) == (PROBLEM, "nvidia-dali-cuda120 and nvidia-dali-cuda130")
    assert found.remedy == "pip uninstall -y nvidia-dali-cuda120 nvidia-dali-cuda130, then make setup"
