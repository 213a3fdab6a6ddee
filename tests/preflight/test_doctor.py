"""The doctor finds on this machine what is there, and on one that is broken on purpose what mends it."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtgen.preflight import doctor
from mtgen.preflight.doctor import CHECKS, GOOD, PROBLEM, WARNING, DoctorFinding, SystemUnderTest, run_checks

ROOT = Path(__file__).resolve().parents[2]


def look(check: str, machine: SystemUnderTest) -> DoctorFinding:
    return run_checks(machine, {check: CHECKS[check]})[0]


@pytest.fixture
def machine(tmp_path: Path) -> SystemUnderTest:
    return SystemUnderTest(tmp_path / "runs", tmp_path / "cache", {})


def test_a_machine_that_passes_its_tests_has_what_trains(machine: SystemUnderTest) -> None:
    found = {one.check: one for one in run_checks(machine)}
    assert list(found) == list(CHECKS)
    assert [found[name].state for name in ("torch", "DeepSpeed", "DALI", "Ray", "MLflow", "file locks")] == [GOOD] * 6
    assert "2.13" in found["torch"].found


def test_whatever_is_not_good_says_what_it_means_and_every_problem_what_mends_it(machine: SystemUnderTest) -> None:
    for one in run_checks(machine):
        assert one.state == GOOD or one.means, one
        assert one.state not in (WARNING, PROBLEM) or one.remedy, one


def test_a_package_that_is_not_there_or_of_another_version_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = doctor._library("torch", ("torch-is-not-called-so",), "nothing trains without it")
    assert (missing.state, missing.found, missing.remedy) == (PROBLEM, "not installed", "make setup")
    monkeypatch.setattr(doctor, "_version", lambda *names: ("torch", "1.0"))
    old = doctor._library("torch", ("torch",), "nothing trains without it")
    assert (old.state, old.found) == (WARNING, "torch 1.0")
    assert ">=2.13" in old.means


def test_a_cluster_and_a_server_that_do_not_answer_are_named_with_their_address(machine: SystemUnderTest) -> None:
    with socket.socket() as taken:  # bound and not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        machine.environment |= {"RAY_ADDRESS": address, "MLFLOW_TRACKING_URI": f"http://{address}"}
        ray, mlflow = look("Ray", machine), look("MLflow", machine)
    assert ray.state == PROBLEM and address in ray.found and "unset RAY_ADDRESS" in ray.remedy
    assert mlflow.state == WARNING and address in mlflow.found and "MLFLOW_TRACKING_URI" in mlflow.remedy


def test_a_token_that_others_can_read_is_named(machine: SystemUnderTest, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    machine.environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    token.chmod(0o644)
    assert look("Ray's token", machine).remedy == f"chmod 600 {token}"
    token.chmod(0o600)
    assert look("Ray's token", machine).state == GOOD


def test_a_full_disk_is_a_problem(machine: SystemUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_DISK_BYTES", 2**80)
    monkeypatch.setattr(doctor, "ENOUGH_DISK_BYTES", 2**80)
    found = look("disk of the cache", machine)
    assert (found.state, "MTGEN_CACHE" in found.remedy, str(machine.cache) in found.found) == (PROBLEM, True, True)


def test_more_threads_than_cpus_and_a_port_in_use_are_said(machine: SystemUnderTest) -> None:
    machine.environment["OMP_NUM_THREADS"] = "4096"
    assert look("threads", machine).remedy == "unset OMP_NUM_THREADS"
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 6379))
        except OSError:
            pass  # somebody else's cluster: as good
        assert "6379 (mtgen cluster head)" in look("ports", machine).found


def test_a_check_that_hangs_is_a_finding_and_the_next_one_is_made(machine: SystemUnderTest) -> None:
    found = run_checks(machine, {"a disk": lambda machine: time.sleep(3600), "Python": CHECKS["Python"]}, limit=0.05)  # type: ignore[arg-type,return-value]
    assert [(one.check, one.state) for one in found] == [("a disk", PROBLEM), ("Python", GOOD)]
    assert "no answer in 0.05 s" in found[0].found


def test_the_command_exits_with_1_where_there_is_a_problem_and_writes_json(tmp_path: Path) -> None:
    environment = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "RAY_ADDRESS": "127.0.0.1:1",
    }
    command = [sys.executable, "-m", "mtgen.cli", "doctor", "--json", "found.json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "error: nothing trains here until this is mended: Ray\n")
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [row["check"] for row in rows] == list(CHECKS)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, mtgen.preflight.doctor as d; d.examine(d.Machine()); print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert not {"torch", "ray", "deepspeed", "mlflow", "nvidia"} & set(done.stdout.split())
