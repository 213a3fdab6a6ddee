"""launch/Dockerfile installs as `make setup` does, for a user without rights, from what the build context holds."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.commands import ROOT

from mtgen.version import __version__

DOCKERFILE = ROOT / "launch/Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")
KNOWN = {"ARG", "FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}
TARGETS = ("cpu", "cuda")


@dataclass
class Stage:
    """One stage: its name, what it is made from, and its instructions in order."""

    name: str
    base: str
    steps: list[tuple[str, str]]

    def all(self, word: str) -> list[str]:
        return [text for instruction, text in self.steps if instruction == word]


def instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for line in re.sub(r"\s*\\\n\s*", " ", lines).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    for word, text in instructions(TEXT):
        assert word in KNOWN, f"{word} {text}"
        if word == "FROM":
            base, _, name = text.partition(" AS ")
            found[name] = Stage(name, base, [])
        elif found:
            list(found.values())[-1].steps.append((word, text))
    return found


STAGES = stages()


def line_of(name: str) -> list[Stage]:
    """A stage after all those that it is made from."""
    stage = STAGES[name]
    return [*(line_of(stage.base) if stage.base in STAGES else []), stage]


def installed(name: str) -> list[str]:
    """What a stage installs by pip and by venv, as the Makefile writes it."""
    steps = [text for stage in line_of(name) for text in stage.all("RUN") if "$PIP" in text or "-m venv" in text]
    return [
        text.replace("python3 -m venv /opt/venv", "PYTHON -m venv VENV")
        .replace("$PIP", "PIP")
        .replace('${TORCH_INDEX:+--index-url "$TORCH_INDEX"} ', "")
        for text in steps
    ]


def made(cuda: str) -> list[str]:
    """What `make setup CUDA=...` installs."""
    found = subprocess.run(
        ["make", "--dry-run", "setup", f"CUDA={cuda}", "VENV=VENV", "PIP=PIP", "PYTHON=PYTHON"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    steps = [line for line in found.stdout.splitlines() if re.search(r"(^| )PIP |-m venv", line)]
    return [line.replace(" --editable .", " .") for line in steps]


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_installs_what_make_setup_installs_in_its_order(target: str) -> None:
    assert installed(f"build-{target}") == made("12" if target == "cuda" else "")
    assert f"--from=build-{target} /opt/venv /opt/venv" in STAGES[target].all("COPY")


@pytest.mark.parametrize(("cuda", "build", "dali"), [("12", "+cu126", "12"), ("13", "+cu130", "13"), ("", "", "12")])
def test_torch_and_dali_are_those_of_the_driver(cuda: str, build: str, dali: str) -> None:
    (torch,) = (line for line in made(cuda) if " torch==" in line)
    assert re.search(r"torch==[\d.]+(\+cu\d+)?", torch)[0].partition("+")[2] == build.removeprefix("+")  # type: ignore[index]
    (lock,) = (line for line in made(cuda) if "--requirement" in line)
    assert lock.endswith(f"--requirement requirements-dali-cuda{dali}.lock")


def test_a_driver_that_is_too_old_is_an_error_with_its_remedy() -> None:
    found = subprocess.run(["make", "setup", "CUDA=11", "VENV=nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode and "CUDA=11: torch 2.13 has builds for CUDA 12 and 13; update" in found.stdout


def test_both_wheels_of_dali_are_of_one_version_and_only_one_is_installed_at_a_time() -> None:
    locks = [(ROOT / f"requirements-dali-cuda{cuda}.lock").read_text(encoding="utf-8") for cuda in (12, 13)]
    pinned = [dict(re.findall(r"^(\S+)==(\S+)$", lock, re.MULTILINE)) for lock in locks]
    assert pinned[0]["nvidia-dali-cuda120"] == pinned[1]["nvidia-dali-cuda130"]
    assert not pinned[0].keys() & pinned[1].keys()
    assert "nvidia" not in (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_pip_is_the_makefiles() -> None:
    (given,) = re.findall(
        r"^PIP := \$\(VENV\)/bin/python (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert STAGES["tools"].all("ENV") == [f'PIP="/opt/venv/bin/python {given}"']


def test_the_base_is_pinned_by_its_digest_and_can_be_replaced() -> None:
    (base,) = re.findall(r"^ARG BASE=(.*)$", TEXT, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base)
    assert {stage.base for stage in STAGES.values()} - set(STAGES) == {"${BASE}"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_a_user_without_rights_whose_signals_arrive(target: str) -> None:
    steps = STAGES[target].steps
    last = [word for word, _ in steps]
    assert STAGES[target].all("USER") == ["1000:1000"] and "RUN" not in last[last.index("USER") :]
    assert json.loads(STAGES[target].all("ENTRYPOINT")[0]) == ["tini", "--"]
    assert json.loads(STAGES[target].all("CMD")[0])[0] == "mtgen"


def test_the_tags_in_its_comments_are_of_this_version() -> None:
    assert set(re.findall(r"mtgen:(\S+)-(?:cpu|cuda)", TEXT)) == {__version__}


def context() -> set[str]:
    """What is copied into the image, all of which the build context has to hold."""
    return {
        name
        for stage in STAGES.values()
        for text in stage.all("COPY")
        if "--from" not in text
        for name in text.split()[:-1]
    }


def test_the_build_context_holds_what_is_copied_and_nothing_else() -> None:
    ignored = (ROOT / "launch/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in ignored if line and not line.startswith("#")]
    assert patterns[0] == "*" and {line[1:] for line in patterns if line.startswith("!")} == context()


@pytest.mark.e2e
def test_what_is_copied_is_enough_to_install_mtgen(tmp_path: Path) -> None:
    """The last step alone: those before it are `make setup`'s, which every run of these tests has behind it."""
    source, site = tmp_path / "src", tmp_path / "site"
    source.mkdir()
    for name in context():
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    step = installed("build-cpu")[-1]
    assert step == "PIP --no-deps --no-build-isolation ."
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
        ".",
    ]
    subprocess.run(pip, cwd=source, check=True, timeout=300)
    ours = {
        str(path.relative_to(ROOT)) for path in (ROOT / "mtgen").rglob("*") if path.is_file() and path.suffix != ".pyc"
    }
    theirs = {
        str(path.relative_to(site)) for path in (site / "mtgen").rglob("*") if path.is_file() and path.suffix != ".pyc"
    }
    assert theirs == ours | {f"mtgen/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    words = [sys.executable, "-m", "mtgen", "configs", "list", "--json", "-"]
    listed = subprocess.run(
        words, cwd=tmp_path, env={"PYTHONPATH": str(site), "PATH": "/usr/bin"}, capture_output=True, check=True
    )
    assert "digits-32" in json.loads(listed.stdout)
