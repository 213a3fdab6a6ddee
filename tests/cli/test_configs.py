"""Configurations that come with mtgen are found by name, copied, and described to editors."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from mtgen.config import load
from mtgen.config.json_schema import json_schema
from mtgen.config.presets import PRESETS_FOLDER, copy_preset, find_preset, list_presets, needs_backbone, preset_summary
from mtgen.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mtgen.cli", "configs", *words]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )


def test_the_names_are_those_of_the_folder_and_each_says_what_it_is_for() -> None:
    assert set(list_presets()) == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert all(len(preset_summary(path)) > 20 for path in list_presets().values())


def test_the_list_says_which_configurations_need_a_pretrained_backbone() -> None:
    needing = {name for name, path in list_presets().items() if needs_backbone(path)}
    assert needing == {"photos-64", "photos-128"}
    assert run(ROOT, "list").stdout.count("pretrained backbone") >= len(needing)


def test_a_file_goes_before_a_name_and_a_wrong_name_suggests_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_preset(Path("digits-32")) == PRESETS_FOLDER / "digits-32.yaml"
    Path("digits-32").write_text("name: mine")
    assert find_preset(Path("digits-32")) == Path("digits-32")
    with pytest.raises(ConfigError, match="digit-32: neither a file here .* did you mean 'digits-32'"):
        find_preset(Path("digit-32"))


def test_a_copy_loads_as_the_original_and_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    path = copy_preset("coco-64", tmp_path)
    assert load(path, ["device=cpu"]) == load(ROOT / "configs/coco-64.yaml", ["device=cpu"])
    with pytest.raises(ConfigError, match="already exists"):
        copy_preset("coco-64", tmp_path)
    assert copy_preset("demo", path, overwrite=True).read_text() == (ROOT / "configs/demo.yaml").read_text()


@pytest.mark.parametrize("path", list_presets().values(), ids=lambda path: path.stem)
def test_editors_accept_every_configuration_that_comes_with_mtgen(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"bach_size": 3}, []),
        ({"batch_size": 1}, ["batch_size"]),
        ({"batch_size": "many"}, ["batch_size"]),
        ({"precision": "fp17"}, ["precision"]),
        ({"tasks": {"clasification": {}}}, ["tasks"]),
        ({"tasks": {"generation": {"gama": 1}}}, ["tasks", "generation"]),
        ({"conditions": {"class": {"probability": 2}}}, ["conditions", "class", "probability"]),
    ],
)
def test_editors_mark_what_mtgen_would_refuse(change: dict, at: list[str]) -> None:
    with pytest.raises(jsonschema.ValidationError) as refused:
        jsonschema.validate({"name": "n", "data": {"path": "p"}, **change}, json_schema())
    assert list(refused.value.absolute_path) == at


def test_editors_show_a_description_of_every_key_but_those_whose_name_says_it() -> None:
    schema = json_schema()
    assert schema["properties"]["zero_stage"]["description"] == "DeepSpeed ZeRO stage: 0, 1 or 2"
    assert schema["properties"]["tasks"]["properties"]["generation"]["properties"]["gamma"]["description"]


def test_the_commands_list_copy_and_write_the_schema_anywhere(tmp_path: Path) -> None:
    listed = run(tmp_path, "list", "--json", "listed.json")
    assert listed.returncode == 0, listed.stderr
    assert list(json.loads((tmp_path / "listed.json").read_text())) == list(list_presets())
    assert run(tmp_path, "copy", "demo").returncode == 0
    shown = run(tmp_path, "show", "demo.yaml", "name=other")
    assert yaml.safe_load(shown.stdout)["name"] == "other"
    assert run(tmp_path, "show", "demo", "name=other").stdout == shown.stdout
    assert json.loads(run(tmp_path, "schema").stdout) == json_schema()
