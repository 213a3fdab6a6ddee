"""A wrong configuration is refused with one line per key at fault, and a right one resolves to what was written."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.config import Config, load, validate
from mtgen.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
WELL = "name: n\ndata: {path: p}\n"
TOP = "possible: name, runs, seed, workers, address, device, precision, "


@pytest.fixture
def lines(tmp_path: Path) -> Any:
    """`lines(yaml, *overrides)`: the lines of the error with which a file is refused."""

    def refuse(text: str | bytes, *overrides: str) -> list[str]:
        file = tmp_path / "c.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ConfigError) as refused:
            load(file, list(overrides))
        return str(refused.value).splitlines()

    return refuse


def read(tmp_path: Path, text: str, *overrides: str) -> Config:
    (tmp_path / "c.yaml").write_text(text)
    return load(tmp_path / "c.yaml", list(overrides))


@pytest.mark.parametrize(
    ("override", "begin", "parts"),
    [
        # unknown keys, at every level
        ("batchsize=32", "batchsize: unknown key; did you mean batch_size? " + TOP, []),
        ("train.image=3", "train.image: unknown key; did you mean train.images? possible: images, max_minutes, ", []),
        ("data.chanels=rgb", "data.chanels: unknown key; did you mean data.channels? ", []),
        (
            "tasks.generation.gama=3",
            "tasks.generation.gama: unknown key; did you mean tasks.generation.gamma? possible: weight, gamma, ",
            [],
        ),
        ("xyzzy=1", "xyzzy: unknown key; " + TOP, []),
        # the right key in the wrong section
        ("images=3", "images: unknown key; did you mean train.images? ", []),
        ("train.batch_size=8", "train.batch_size: unknown key; did you mean batch_size? ", []),
        ("gamma=3", "gamma: unknown key; did you mean tasks.generation.gamma or tasks.translation.gamma? ", []),
        ("tasks.generation.images=3", "tasks.generation.images: unknown key; did you mean train.images? ", []),
        (
            "learning_rate=1",
            "learning_rate: unknown key; did you mean generator.learning_rate or discriminator.learning_rate? ",
            [],
        ),
        ("data.mixture=[{pth: a}]", "data.mixture.0.path: is missing (folder with dataset.json ", []),
        (
            "data.mixture=[{path: a, weigth: 2}]",
            "data.mixture.0.weigth: unknown key; did you mean data.mixture.0.weight? possible: path, ",
            [],
        ),
        # another trainer's word for it
        ("zero_optimization={stage: 2}", "zero_optimization: unknown key; did you mean zero_stage? ", []),
        ("train.epochs=3", "train.epochs: unknown key; did you mean train.images? possible: images, ", []),
        ("lr=1", "lr: unknown key; did you mean generator.learning_rate or discriminator.learning_rate? ", []),
        # wrong types
        ("resolution=big", "resolution=big: input should be a whole number of pixels, or [height, width]", []),
        ("resolution=[64, 64, 3]", "resolution=['64', '64', '3']: input should be a whole number of pixels, ", []),
        ("data.mixture=[3]", "data.mixture.0=3: is a section, not a single value; its keys: path, weight, ", []),
        ("seed=a", "seed=a: ", ["valid integer"]),
        ("seed=1.5", "seed=1.5: ", ["valid integer"]),
        ("seed=true", "seed=true: ", ["valid integer"]),
        ("generator.learning_rate=fast", "generator.learning_rate=fast: ", ["valid number"]),
        ("generator.learning_rate=true", "generator.learning_rate=true: ", ["valid number"]),
        ("data.flip=maybe", "data.flip=maybe: ", ["valid boolean"]),
        ("name=", "name=null: ", ["valid string"]),
        ("generator.widths=3", "generator.widths=3: ", ["valid list"]),
        ("generator.widths=[96, a, 64, 32]", "generator.widths.1=a: ", ["valid integer"]),
        ("train=5", "train=5: is a section, not a single value; its keys: images, max_minutes", []),
        ("tasks.generation=3", "tasks.generation=3: is a section, not a single value; its keys: weight, gamma", []),
        (
            "tasks=[generation]",
            "tasks=['generation']: expected a mapping of a task's name to its settings; possible: alignment, ",
            [],
        ),
        # out of range
        ("seed=-1", "seed=-1: ", ["greater than or equal to 0"]),
        ("batch_size=1", "batch_size=1: ", ["greater than or equal to 2"]),
        ("tasks.classification.weight=-1", "tasks.classification.weight=-1: ", ["greater than or equal to 0"]),
        ("augment.probability=1", "augment.probability=1: ", ["less than 1"]),
        ("train.max_minutes=.inf", "train.max_minutes=.inf: ", ["valid number"]),
        ("train.max_minutes=inf", "train.max_minutes=inf: ", ["finite number"]),
        ("generator.learning_rate=nan", "generator.learning_rate=nan: ", ["finite number"]),
        ("tasks.generation.gamma=inf", "tasks.generation.gamma=inf: ", ["finite number"]),
        # none of what is possible
        ("precision=fp61", "precision=fp61: did you mean 'fp16'? possible: auto, fp32, bf16, fp16", []),
        ("data.channels=RGB", "data.channels=RGB: did you mean 'rgb'? possible: rgb, gray", []),
        ("data.keep_labels={clas: 1}", "data.keep_labels.clas=clas: did you mean 'class'? possible: class, mask, ", []),
        (
            "tasks.clasification.weight=1",
            "tasks.clasification: unknown task; did you mean 'classification'? possible: alignment, ",
            [],
        ),
        (
            "balancing.weighting=upgard",
            "balancing.weighting=upgard: unknown weighting; did you mean 'upgrad'? possible: none, aligned_mtl, ",
            [],
        ),
        ("balancing.canvas=x", "balancing.canvas=x: unknown weighting; possible: none, aligned_mtl, ", []),
        (
            "balancing.preference={segmentaton: 2}",
            "balancing.preference.segmentaton=2.0: unknown task or group; did you mean 'segmentation'? possible: "
            "alignment, ",
            [],
        ),
        (
            "balancing={preference: {segmentation: 2}, groups: {reading: [classification, segmentation]}}",
            "balancing.preference.segmentation=2.0: is in the group 'reading'",
            ["balancing.preference.reading=2.0"],
        ),
        ("balancing.parameters={imtlg: {c: 1}}", "balancing.parameters=", ["imtlg", "did you mean 'imtl_g'? possible"]),
        (
            "balancing.parameters={mine.Own: {c: 1}}",
            "balancing.parameters: no gate has the weighting 'mine.Own'",
            ["balancing.weighting"],
        ),
        ("balancing.parameters={fairgrad: {alpha: 0}}", "balancing.parameters", ["alpha=0", "must be above 0"]),
        (
            "balancing.parameters={dwa: {temperature: 0}}",
            "balancing.parameters",
            ["temperature=0", "must be above 0"],
        ),
        ("tasks.generation.joint_every=1", "tasks.generation.joint_every=1: ", ["greater than or equal to 2"]),
        # well-formed and impossible
        ("workers={min: 3, max: 2}", "workers={min: 3, max: 2}: min is above max", []),
        ("workers={min: 0, max: 2}", "workers.min=0: input should be greater than or equal to 1", []),
        ("workers={min: 2}", "workers.max: is missing", []),
        ("workers={min: 1, max: 2, mox: 3}", "workers.mox: unknown key", ["max"]),
        ("workers=two", "workers=two: input should be a whole number of processes", ["{min: N, max: M}"]),
        (
            "workers={min: 2, max: 3}",
            "workers={min: 2, max: 3}: 2 workers cannot share the 3 micro-batches of a step evenly",
            ["train.accumulation=2 lets them", "min=3"],
        ),
        ("zero_stage=3", "zero_stage=3: possible: 0, 1, 2; stage 3 fails where ", []),
        (
            "tasks={generation: {}, translation: {}}",
            "tasks.translation.domain=domain: the run has one data set and so one domain",
            ["data.mixture"],
        ),
        (
            "data.label_oversampling=0.25\ndata.order=windowed",
            "data.label_oversampling=0.25: it needs samples of all shards, and data.order=windowed takes a few",
            ["set data.order=lanes"],
        ),
        (
            "batch_size=48\ndata.lanes=10",
            "data.lanes=10: does not divide batch_size=48",
            ["nearest possible: 8"],
        ),
        (
            "data.order=global\ndata.lane_window=10",
            "data.lane_window=10: has no effect with data.order=global",
            ["set data.order=lanes"],
        ),
        (
            "data.label_oversampling=0.25\ntasks={generation: {}}",
            "data.label_oversampling=0.25: no task needs labels",
            ["switch one on"],
        ),
        (
            "data={mixture: [{path: a}, {path: b}], label_oversampling: 0.25}",
            "data.label_oversampling=0.25: a mixture has weights",
            ["separate data set"],
        ),
        (
            "tasks={classification: {}}\naugment.target=0.6",
            "augment.target: is measured on real and generated images, and tasks.generation is off",
            ["augment.probability"],
        ),
        (
            "batch_size=6\ntasks.generation.joint_every=4\ntasks.translation={domain: class}",
            "batch_size=6: a micro-batch has 6 samples and needs 8",
            ["tasks.generation.joint_every=4 apart", "raise batch_size to 8"],
        ),
        (
            "resolution=48",
            "resolution=48: generator.widths has 4 levels, ",
            ["reach 32 pixels", "possible: 8, 16, 32, 64"],
        ),
        ("generator.widths=[]", "generator.widths=[]: give one positive number of channels per level", []),
        (
            "generator.widths=[8,0,8,8]",
            "generator.widths=[8, 0, 8, 8]: give one positive number of channels per level",
            [],
        ),
        ("tasks={}", "tasks: none is switched on; possible: alignment, classification, ", []),
        (
            "tasks={reconstruction: {}}",
            "tasks.generation: has to be on: reconstruction cannot learn without a generator",
            ["tasks.generation={}"],
        ),
        ("data.path=", "data.path: is missing", ["data.mixture"]),
        ("data.mixture=[{path: b}]", "data.path=", ["keep one of them"]),
        ("data.path=''", "data.path=: ", ["at least 1 character"]),
        ("name=../x", "name=../x: a run's name consists of letters, digits, ", []),
        ("name=.hidden", "name=.hidden: a run's name consists of letters, digits, ", []),
    ],
)
def test_a_wrong_value_is_named_with_what_is_possible(lines: Any, override: str, begin: str, parts: list[str]) -> None:
    first = lines(WELL, *override.splitlines())[0]
    assert first.startswith(begin)
    assert all(part in first for part in parts)


def test_a_missing_key_is_named_with_its_meaning(lines: Any) -> None:
    assert lines("seed: 1") == [
        "name: is missing (name of the run and of its folder); give it in the file or as name=...",
        "data: is missing; give it in the file or as data=...",
    ]
    assert lines("name: n\ndata:\n") == [
        "data.path: is missing (folder with dataset.json and its shards, or its URL); give it or data.mixture"
    ]


def test_every_key_at_fault_has_one_line_and_all_come_at_once(lines: Any) -> None:
    text = WELL + "workers: -1\nprecision: x\nfoo: 1\nzero_stage: 3\nresolution: 64\n"
    text += "train: {image: 1, max_minutes: a}\ntasks: {x: , generation: {gamma: b}}"
    keys = [
        "workers",
        "precision",
        "foo",
        "train.image",
        "train.max_minutes",
        "tasks.x",
        "tasks.generation.gamma",
        "zero_stage",
        "resolution",
    ]
    found = lines(text)
    assert all(sum(line.startswith((f"{key}=", f"{key}: ")) for line in found) >= 1 for key in keys), found
    assert len(found) == len(keys) + 1  # the resolution is out of reach of both networks


def test_the_resolution_says_how_many_widths_reach_it(lines: Any) -> None:
    assert lines(WELL + "resolution: 64") == [
        f"resolution=64: {side}.widths has 4 levels, which reach 32 pixels from 4x4; give 5 widths for 64"
        for side in ("generator", "discriminator")
    ]


@pytest.mark.parametrize(
    ("batch_size", "workers", "accumulation", "nearest"),
    [(33, 2, 1, 32), (2, 3, 1, 6), (35, 2, 3, 36), (10, 1, 4, 8), (5, 0, 2, 4)],
)
def test_a_batch_that_workers_cannot_share_names_the_nearest_that_they_can(
    lines: Any, batch_size: int, workers: int, accumulation: int, nearest: int
) -> None:
    (line,) = lines(WELL, f"batch_size={batch_size}", f"workers={workers}", f"train.accumulation={accumulation}")
    assert line.startswith(f"batch_size={batch_size}: ")
    assert line.endswith(f"nearest possible: {nearest}")


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 6))
def test_the_accumulation_that_is_named_lets_the_fewest_workers_share_a_step(
    least: int, more: int, accumulation: int
) -> None:
    def settings(accumulation: int) -> dict[str, Any]:
        workers = {"min": least, "max": least + more}
        batch = 2 * (least + more) * accumulation
        return {
            "name": "n",
            "data": {"path": "p"},
            "batch_size": batch,
            "workers": workers,
            "train": {"accumulation": accumulation},
        }

    try:
        config = validate(settings(accumulation))
    except ConfigError as error:
        named = re.search(r"train.accumulation=(\d+) lets them", str(error))
        assert named, error
        config = validate(settings(int(named[1])))
    assert config.worker_counts[0] == least and config.worker_counts[-1] == least + more
    assert all(
        config.micro_batches(count) * count * config.micro_batch == config.batch_size for count in config.worker_counts
    )


@given(st.integers(2, 300), st.integers(0, 7), st.integers(1, 4))
def test_the_nearest_batch_is_accepted_and_no_other_is_nearer(batch_size: int, workers: int, accumulation: int) -> None:
    def tried(size: int) -> str:
        try:
            validate(
                {
                    "name": "n",
                    "data": {"path": "p"},
                    "batch_size": size,
                    "workers": workers,
                    "train": {"accumulation": accumulation},
                }
            )
        except ConfigError as error:
            return str(error)
        return ""

    message = tried(batch_size)
    if message:
        nearest = int(message.rpartition(" ")[2])
        assert tried(nearest) == ""
        closer = range(max(2, batch_size - abs(nearest - batch_size) + 1), batch_size + abs(nearest - batch_size))
        assert all(tried(size) for size in closer)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1, 2]", "is a list, not a mapping"),
        ("", "is empty, not a mapping"),
        ("words", "is plain text, not a mapping"),
        (WELL + "a: [", "not readable as YAML"),
        (WELL + "\tb: 3", "not readable as YAML"),
        (WELL + "name: m", "duplicate key 'name' at line 3"),
        (WELL + "train: {images: 3, images: 4}", "duplicate key 'images' at line 3"),
        (WELL + "? [a]\n: 4", "a key must be a word"),
        ("[" * 5000, "nested too deeply"),
        (b"name: \xff\xfe", "not UTF-8 text"),
        (b"name: a\x00b", "not readable as YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_named_with_the_reason(lines: Any, text: str | bytes, reason: str) -> None:
    (line,) = lines(text)
    assert "c.yaml: " in line
    assert reason in line


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.system", "!!int", "!!timestamp", "!own"]
)
def test_yaml_tags_are_refused_and_do_nothing(lines: Any, tmp_path: Path, tag: str) -> None:
    (line,) = lines(WELL + f"seed: {tag} [{tmp_path / 'made'}]")
    assert "not readable as YAML" in line
    assert not (tmp_path / "made").exists()


def test_a_bomb_of_aliases_is_refused_in_short_lines(lines: Any) -> None:
    layers = [f"{k}: &{k} [{', '.join(['*' + before] * 9)}]" for before, k in zip("abcdefgh", "bcdefghi", strict=True)]
    found = lines(WELL + "a: &a [x, x]\n" + "\n".join(layers) + "\ntrain: *i")
    assert len(found) == 10
    assert max(map(len, found)) < 600


def test_a_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(WELL)
    with pytest.raises(
        ConfigError, match=r"digit\.yaml: cannot be read \(No such file or directory\); did you mean '.*digits\.yaml'"
    ):
        load(tmp_path / "digit.yaml")


def test_text_stays_text_where_yaml_guesses(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "name: 010\nruns: off\ndata: {path: no, train_split: 2024-01-01, test_split: 1e3}\ntracking: {experiment: "
        "1:30, uri: true}",
    )
    values = [
        config.name,
        config.runs,
        config.data.path,
        config.data.train_split,
        config.data.test_split,
        config.tracking.experiment,
        config.tracking.uri,
    ]
    assert values == ["010", "off", "no", "2024-01-01", "1e3", "1:30", "true"]


def test_numbers_and_switches_are_read_as_they_are_meant(tmp_path: Path) -> None:
    text = (
        WELL
        + "generator: {learning_rate: 1e-3}\ntrain: {images: 200_000, max_minutes: ~, final_rate: .5}\n"
        + "augment:\ntasks: {generation: }\n"
    )
    config = read(tmp_path, text, "data.flip=yes", "seed=010", "tasks.generation.joint_gradient=on")
    assert (config.generator.learning_rate, config.train.images, config.train.max_minutes, config.train.final_rate) == (
        1e-3,
        200_000,
        None,
        0.5,
    )
    assert (config.data.flip, config.seed, config.tasks["generation"].joint_gradient) == (True, 10, True)
    assert config.augment == Config.model_fields["augment"].default


def test_overrides_go_over_the_file_into_any_depth(tmp_path: Path) -> None:
    text = WELL + "train: {images: 5, warmup: 7}\ntasks: {generation: {gamma: 2}}"
    config = read(
        tmp_path,
        text,
        "train.images=6",
        "tasks.generation.joint_every=3",
        "tasks.segmentation.weight=2",
        "generator.widths=[4,4,4,4]",
        "seed=1",
        "seed=2",
    )
    assert (config.train.images, config.train.warmup, config.seed, config.generator.widths) == (6, 7, 2, [4] * 4)
    assert (
        config.tasks["generation"].gamma,
        config.tasks["generation"].joint_every,
        config.tasks["segmentation"].weight,
    ) == (2, 3, 2)


def test_an_override_of_one_of_two_aliased_sections_leaves_the_other(tmp_path: Path) -> None:
    config = read(tmp_path, WELL + "generator: &both {blocks: 2}\ndiscriminator: *both", "generator.blocks=3")
    assert (config.generator.blocks, config.discriminator.blocks) == (3, 2)


def test_malformed_overrides_come_all_at_once(lines: Any) -> None:
    found = lines(WELL, "seed", "=3", "a b=3", "a..b=1", "name.x=3", "seed=[", "seed=5")
    begins = [
        "seed: not an override; write key=value",
        "=3: not an",
        "a b=3: not an",
        "a..b=1: not an",
        "name.x=3: name is a single value",
        "seed=[: not readable as YAML",
    ]
    assert [line.startswith(begin) for line, begin in zip(found, begins, strict=True)] == [True] * 6


_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
_POSITIVE = st.floats(1e-30, 1e30)


@given(_NAMES, _TEXT, st.none() | _TEXT, st.booleans(), _POSITIVE, st.none() | _POSITIVE, st.integers(0, 2**31 - 1))
def test_the_resolved_configuration_reads_back_as_itself(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    path: str,
    uri: str | None,
    flip: bool,
    rate: float,
    minutes: float | None,
    seed: int,
) -> None:
    values = {
        "name": name,
        "data": {"path": path, "flip": flip},
        "tracking": {"uri": uri},
        "generator": {"learning_rate": rate},
        "train": {"max_minutes": minutes},
        "seed": seed,
        "tasks": {"generation": {"gamma": rate}, "segmentation": {}},
    }
    config = validate(values)
    file = tmp_path_factory.getbasetemp() / "resolved.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert load(file) == config


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_every_configuration_that_comes_with_mtgen_loads(file: Path) -> None:
    assert load(file).name == {"folder-32": "mine"}.get(
        file.stem, file.stem
    )  # which is to be copied, and has the name of the copy


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mtgen.cli", "configs", "show", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_prints_the_resolved_configuration(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(WELL)
    done = run(str(tmp_path / "c.yaml"), "seed=3")
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "again.yaml").write_text(done.stdout)
    assert load(tmp_path / "again.yaml") == load(tmp_path / "c.yaml", ["seed=3"])


def test_the_command_refuses_with_status_2_and_one_line_a_key(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(WELL + "seed: a\nzero_stage: 3")
    done = run(str(tmp_path / "c.yaml"), "batch=3")
    assert (done.returncode, done.stdout) == (2, "")
    begins = ["error: seed=a: ", "error: batch: unknown key; did you mean batch_size? ", "error: zero_stage=3: "]
    assert [line.startswith(begin) for line, begin in zip(done.stderr.splitlines(), begins, strict=True)] == [True] * 3


def test_the_command_refuses_a_missing_file_with_status_2() -> None:
    done = run("configs/digits-23.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: configs/digits-23.yaml: cannot be read" in done.stderr
    assert "did you mean 'configs/digits-32.yaml'?" in done.stderr
