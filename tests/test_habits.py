"""The files that make a repository a project agree with each other, with the package, and with their formats."""

import datetime
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtgen.version import __version__

ROOT = Path(__file__).resolve().parents[1]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))


def parsed(path: str | Path) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_the_citation_is_of_this_version_and_has_what_the_format_requires() -> None:
    citation = parsed("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert citation["version"] == __version__
    assert all(author.keys() & {"name", "family-names"} for author in citation["authors"])


def test_the_changelog_has_this_version_with_the_citations_date() -> None:
    headings = re.findall(r"^## (.*)$", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert headings[1] == f"[{__version__}] - {parsed('CITATION.cff')['date-released']}"
    dates = [datetime.date.fromisoformat(heading.partition(" - ")[2]) for heading in headings[1:]]
    assert dates == sorted(dates, reverse=True)
    assert set(re.findall(r"^### (.*)$", text("CHANGELOG.md"), re.MULTILINE)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }


def test_the_workflow_runs_what_every_change_has_to_pass() -> None:
    workflow = parsed(".github/workflows/ci.yml")
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == ".ci/run"
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    assert job["timeout-minutes"] == 90 and workflow["permissions"] == {"contents": "read"}
    assert set(workflow[True]) >= {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_github_requires(form: Path) -> None:
    values = parsed(form)
    assert {"name", "description", "body"} <= set(values)
    names = [part["id"] for part in values["body"]]
    assert len(set(names)) == len(names)
    for part in values["body"]:
        assert part["type"] in {"textarea", "input", "dropdown", "checkboxes"} and part["attributes"]["label"]


def test_a_report_of_a_bug_has_what_is_needed_to_look_for_it() -> None:
    form = text(".github/ISSUE_TEMPLATE/bug.yml")
    assert [path.stem for path in FORMS] == ["bug", "feature"]
    for asked in ("mtgen --version", "mtgen doctor --json -", "mtgen configs show", "log.txt"):
        assert asked in form


def test_pre_commit_has_the_ruff_of_the_lock_and_the_mypy_of_the_environment() -> None:
    repositories = {repository["repo"]: repository for repository in parsed(".pre-commit-config.yaml")["repos"]}
    (ruff,) = (repository for name, repository in repositories.items() if name.endswith("ruff-pre-commit"))
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in text("requirements.lock").splitlines()
    assert {hook["id"] for hook in ruff["hooks"]} == {"ruff-check", "ruff-format"}
    assert [hook["entry"] for hook in repositories["local"]["hooks"]] == [".venv/bin/mypy"]


def test_users_get_the_types_of_the_package() -> None:
    assert (ROOT / "mtgen/py.typed").is_file() and "py.typed" in text("setup.cfg")


def test_contributing_has_every_folder_of_the_package() -> None:
    table = text("CONTRIBUTING.md").partition("## Where things are")[2].partition("## ")[0]
    folders = {path.name for path in (ROOT / "mtgen").iterdir() if (path / "__init__.py").is_file()}
    rows = "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))
    assert folders == set(re.findall(r"`(\w+)/`", rows))


def test_contributing_has_the_layers_that_the_architecture_test_holds() -> None:
    import ast

    code = ast.parse(text("tests/test_architecture.py"))
    values = {node.targets[0].id: node.value for node in code.body if isinstance(node, ast.Assign)}  # type: ignore[attr-defined]
    layers = ast.literal_eval(values["LAYERS"])[1:]  # after the root's modules
    listed = re.findall(
        r"^\d+\. (`.*)$", text("CONTRIBUTING.md").partition("## Where something new goes")[0], re.MULTILINE
    )
    assert [set(re.findall(r"`(\w+)`", line)) for line in listed] == layers
