"""Every path in a configuration becomes absolute where it is typed, also in submitted jobs; nothing else changes."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtgen.cli.common import load_config
from mtgen.config import Config, PathKind, validate
from mtgen.config.messages import sections
from mtgen.errors import ConfigError
from mtgen.launchers.ray_jobs import pack_config

RELATIVE = {
    "runs": "some/runs",
    "data.path": "set",
    "data.tokenizer": "tokenizer.json",
    "conditions.caption.encoder": "encoder.pt",
    "train.init_from": "other",
    "checkpoint.mirror": "../mirror",
    "evaluate.extractor.path": "network.pt",
    "discriminator.backbone.path": "backbone.safetensors",
    "tracking.uri": "sqlite:///tracking.db",
}
MIXTURE = {"data.mixture.path": "set"}
EXTRACTOR = {"kind": "torchscript", "sha256": "0" * 64}


def marked() -> dict[str, PathKind]:
    """Every key that is said to be a path, by its dotted name."""
    found = {}
    for section, model in sections().items():
        for name, field in model.model_fields.items():
            if marks := [mark for mark in field.metadata if isinstance(mark, PathKind)]:
                found[f"{section}.{name}".lstrip(".")] = marks[0]
    return found


def written(folder: Path, paths: dict[str, str]) -> Path:
    """A configuration file with these paths."""
    values: dict[str, Any] = {"name": "n", "data": {}}
    for key, path in paths.items():
        *parents, last = key.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, dict(EXTRACTOR) if parent == "extractor" else {})
        section[last] = path
    if mixed := values["data"].pop("mixture", None):
        values["data"]["mixture"] = [mixed, {"path": "s3://bucket/set"}]
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder / "run.yaml"


def read(config: Config, key: str) -> Any:
    place: Any = config
    for part in key.split("."):
        place = place[part] if isinstance(place, dict) else getattr(place, part)
        place = place[0] if isinstance(place, list) else place
    return place


def both(path: Path, assignments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Config]:
    """A configuration as loaded here, and as a submitted job loads it in another folder."""
    here, (values, _) = load_config(path, assignments), pack_config(path, assignments)
    monkeypatch.chdir("/")
    return here, validate(yaml.safe_load(yaml.safe_dump(values)))


def test_every_key_that_says_so_is_a_path_and_every_one_is_tested_here() -> None:
    assert marked().keys() == RELATIVE.keys() | MIXTURE.keys()
    for section, model in sections().items():
        for name, field in model.model_fields.items():
            key, text = f"{section}.{name}".lstrip("."), "str" in str(field.annotation)
            if (
                text
                and re.search(r"\b(file|folder|path|UR[IL])\b", field.description or "")
                and key not in ("name", "balancing.weighting")
            ):
                assert key in marked(), f"{key} reads like a path: is it to be made absolute?"


@pytest.mark.parametrize("paths", [RELATIVE, MIXTURE], ids=["one data set", "a mixture"])
def test_a_path_means_the_folder_that_it_was_typed_in(
    paths: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    for config in both(written(tmp_path, paths), [], monkeypatch):
        for key, path in paths.items():
            name = path.removeprefix("sqlite:///")
            assert read(config, key) == path.removesuffix(name) + str(tmp_path / name), key


def test_a_path_over_the_files_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for config in both(
        written(tmp_path, {"data.path": "set"}), ["data.path=new", "checkpoint.mirror=copies"], monkeypatch
    ):
        assert (config.data.path, config.checkpoint.mirror) == (str(tmp_path / "new"), str(tmp_path / "copies"))
        assert config.runs == str(tmp_path / "runs")


def test_urls_absolute_paths_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stay = {key: "s3://bucket/x" for key in RELATIVE if key not in ("runs", "train.init_from", "tracking.uri")}
    stay |= {"runs": "/shared/runs", "train.init_from": "a-name", "tracking.uri": "https://mlflow.example"}
    for config in both(written(tmp_path, stay), ["balancing.weighting=my.own.Weighting"], monkeypatch):
        assert {key: read(config, key) for key in stay} == stay
        assert config.balancing.weighting == "my.own.Weighting"


def test_a_weighting_of_ones_own_in_a_file_here_travels_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    words = ["balancing.weighting=mine.Own", "balancing.parameters={mine.Own: {c: 1}}"]
    for config in both(written(tmp_path, {"data.path": "set"}), words, monkeypatch):
        assert config.balancing.weighting == f"{tmp_path}/mine.py:Own" and config.balancing.parameters == {
            f"{tmp_path}/mine.py:Own": {"c": 1}
        }


def test_only_what_was_written_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["address=10.0.0.1:6379", "device=cpu", "workers={min: 1, max: 2}", "tasks.generation.gamma=3"]
    values, _ = pack_config(written(tmp_path, {"data.path": "set"}), words)
    assert values == {
        "name": "n",
        "runs": str(tmp_path / "runs"),
        "data": {"path": str(tmp_path / "set")},
        "device": "cpu",
        "workers": {"min": 1, "max": 2},
        "tasks": {"generation": {"gamma": 3.0}},
    }


def test_a_password_does_not_travel(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri: holds a password"):
        pack_config(written(tmp_path, {"data.path": "set", "tracking.uri": "https://me:secret@mlflow.example"}), [])
