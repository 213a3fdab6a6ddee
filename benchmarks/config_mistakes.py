"""Generate mistakes in real configurations, and check that each error message names the key and a remedy.

The mistakes are those that people make: missing, doubled or swapped letters, a word instead of a number, a value out of
range, another framework's name for a key, a missing line, an open bracket. The last column is the fraction of
misspelled words for which the right word is suggested.
"""

import random
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from common import machine, quick_option, report

from mtgen.config import load
from mtgen.config.messages import KEY_ALIASES
from mtgen.errors import ConfigError
from mtgen.utils.yaml_text import read_yaml

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
REMEDIES = (
    "did you mean",
    "possible",
    "should be",
    "should have",
    "give ",
    "has to be",
    "keep one",
    "keys:",
    "consists of",
    "YAML",
    "raise ",
    "configs list",
    "leave ",
)
"""Phrases of which every remedy has at least one."""
OUT_OF_RANGE = {
    "batch_size": 1,
    "seed": -1,
    "workers": -2,
    "generator.blocks": 0,
    "discriminator.learning_rate": 0,
    "augment.probability": 1.5,
    "tasks.generation.gamma": -1,
    "tasks.segmentation.weight": -0.5,
    "train.final_rate": 2,
    "data.crop": 0,
    "checkpoint.keep": 0,
    "evaluate.samples": 3,
}
WORDS = {
    "batch_size": "many",
    "resolution": "large",
    "train.images": "200k",
    "generator.widths": "wide",
    "data.flip": "perhaps",
    "generator.learning_rate": "fast",
    "data": "here",
    "tasks": "all",
    "conditions.class.probability": "half",
}
CHOICES = {
    "device": "gpu0",
    "precision": "bfloat16",
    "data.channels": "grey",
    "data.order": "globl",
    "balancing.weighting": "cagrd",
}
INTENDED_CHOICES = {
    "precision": "bf16",
    "data.channels": "gray",
    "data.order": "global",
    "balancing.weighting": "cagrad",
}
CONTRADICTIONS = [  # settings that are each valid but not together -> the key that the message must name
    (["batch_size=33", "workers=2"], "batch_size"),
    (["resolution=48"], "resolution"),
    (["generator.widths=[8, 8]"], "resolution"),
    (["zero_stage=3"], "zero_stage"),
    (["tasks={}"], "tasks"),
    (["tasks={reconstruction: {}}"], "tasks.generation"),
    (["data.mixture=[{path: b}]", "data.path=a"], "data.path"),
    (["name=../elsewhere"], "name"),
    (["balancing.groups={a: [generation], b: [generation]}"], "balancing.groups"),
]
BROKEN = {
    "an open bracket": lambda text: text + "more: [1, 2\n",
    "a tab": lambda text: text + "more:\n\tkey: 1\n",
    "a key twice": lambda text: text + "\n" + text,
    "no colon": lambda text: "name of the run\n" + text,
    "an open quote": lambda text: text + 'more: "words\n',
    "nothing": lambda text: "",
    "a list": lambda text: "- " + text.replace("\n", "\n  "),
}


@dataclass(frozen=True)
class Mistake:
    """One invalid configuration.

    Attributes:
        kind: kind of mistake.
        config: name of the real configuration with the mistake.
        text: content of the file.
        names: key that a line of the message must begin with, or the file's name if the file itself is invalid.
        meant: the right word, if one was misspelled.
    """

    kind: str
    config: str
    text: str
    names: str
    meant: str | None = None


def paths(values: dict[str, Any], parent: str = "") -> Iterator[str]:
    """Yield every key of a configuration, dotted, sections included."""
    for key, value in values.items():
        name = f"{parent}.{key}" if parent else key
        yield name
        if isinstance(value, dict):
            yield from paths(value, name)


def misspelled(word: str, rng: random.Random) -> str:
    """A typo of a word: a missing, doubled or wrong letter, or two swapped letters; never the word itself."""
    while True:
        at = rng.randrange(len(word) - 1) if len(word) > 1 else 0
        typed = rng.choice(
            [
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
                word[:at] + rng.choice("aeionrst") + word[at + 1 :],
                word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :],
                word.replace("_", rng.choice(["", "-"])),
            ]
        )
        if typed and typed != word:
            return typed


def _changed(values: dict[str, Any], key: str, value: Any, new_name: str | None = None) -> str:
    """Text of the file with `key` set to a value, or renamed to `new_name`; missing sections are created."""
    copy: dict[str, Any] = yaml.safe_load(yaml.safe_dump(values))
    *parents, last = key.split(".")
    place = copy
    for parent in parents:
        place = place.setdefault(parent, {})
        if place is None:
            break
    assert isinstance(place, dict)
    if new_name is None:
        place[last] = value
    else:
        place[new_name] = place.pop(last)
    return yaml.safe_dump(copy, sort_keys=False)


def mistakes(each: int = 6, seed: int = 0) -> Iterator[Mistake]:
    """Generate `each` misspelled keys of every real configuration, and all other kinds distributed over them."""
    rng = random.Random(seed)
    files = {path.stem: read_yaml(path) for path in CONFIGS}
    for name, values in files.items():
        for key in rng.choices(sorted(paths(values)), k=each):
            typed = misspelled(key.rpartition(".")[2], rng)
            wrong = f"{key.rpartition('.')[0]}.{typed}".lstrip(".")
            yield Mistake("misspelled key", name, _changed(values, key, None, typed), wrong, key)
    yield from _wrong_values(files)
    yield from _wrong_files(files)


def _config(files: dict[str, Any], number: int) -> tuple[str, dict[str, Any]]:
    """Name and values of one of the configurations, chosen by turns, without its conditions."""
    name = sorted(files)[number % len(files)]
    return name, {key: value for key, value in files[name].items() if key != "conditions"}


def _wrong_values(files: dict[str, Any]) -> Iterator[Mistake]:
    for number, (key, value) in enumerate(OUT_OF_RANGE.items()):
        name, values = _config(files, number)
        yield Mistake("out of range", name, _changed(values, key, value), key)
    for number, (key, value) in enumerate(WORDS.items()):
        name, values = _config(files, number)
        yield Mistake("wrong type", name, _changed(values, key, value), key)
    for number, (key, value) in enumerate(CHOICES.items()):
        name, values = _config(files, number)
        yield Mistake("unknown choice", name, _changed(values, key, value), key, INTENDED_CHOICES.get(key))
    for number, (word, right) in enumerate(KEY_ALIASES.items()):
        name, values = _config(files, number)
        yield Mistake("another framework's key", name, _changed(values, word, 1), word, right[0])


def _wrong_files(files: dict[str, Any]) -> Iterator[Mistake]:
    for number, key in enumerate(("name", "data", "data.path")):
        name, values = _config(files, number)
        *parents, last = key.split(".")
        left = yaml.safe_load(yaml.safe_dump(values))
        (left[parents[0]] if parents else left).pop(last)
        yield Mistake("missing part", name, yaml.safe_dump(left), key)
    for settings, key in CONTRADICTIONS:
        text = yaml.safe_dump(files["digits-32"])
        for setting in settings:
            path, _, value = setting.partition("=")
            text = _changed(yaml.safe_load(text), path, yaml.safe_load(value))
        yield Mistake("contradiction", "digits-32", text, key)
    for number, (kind, broken) in enumerate(BROKEN.items()):
        name = sorted(files)[number % len(files)]
        yield Mistake(f"broken YAML: {kind}", name, broken(yaml.safe_dump(files[name])), "config.yaml")


@dataclass(frozen=True)
class Verdict:
    """How a mistake was reported.

    Attributes:
        refused: a user error was raised, not a traceback.
        named: a line of the message begins with the key.
        remedy: that line has a remedy.
        suggested: the right word is suggested; `None`: no word was misspelled.
        message: that line.
    """

    refused: bool
    named: bool
    remedy: bool
    suggested: bool | None
    message: str


def judge(mistake: Mistake, folder: Path) -> Verdict:
    """Load the file and judge the error message."""
    path = folder / "config.yaml"
    path.write_text(mistake.text, encoding="utf-8")
    try:
        load(path, ["device=cpu"] if mistake.names != "device" else [])
    except ConfigError as error:
        lines = str(error).splitlines()
    except Exception:  # noqa: BLE001 - this program looks for tracebacks
        return Verdict(False, False, False, None, traceback.format_exc())
    else:
        return Verdict(False, False, False, None, "accepted")
    here = str(path) if mistake.names == "config.yaml" else mistake.names
    found = next((line for line in lines if line.startswith((f"{here}=", f"{here}:", f"{here}."))), "")
    suggested = None
    if mistake.meant is not None:
        hint = found.partition("did you mean ")[2].partition("?")[0].replace("'", "")
        suggested = not {mistake.meant, mistake.meant.rpartition(".")[2]}.isdisjoint(hint.split(" or "))
    return Verdict(True, bool(found), any(word in found for word in REMEDIES), suggested, found or lines[0])


def main(
    quick: Annotated[bool, quick_option("one misspelled key per configuration")] = False,
    each: Annotated[
        int | None, typer.Option(min=1, help="misspelled keys per configuration; default: 6, quick: 1")
    ] = None,
    seed: Annotated[int, typer.Option(help="random seed of the misspelled keys")] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="also write the numbers and every mistake with its message"),
    ] = None,
) -> None:
    """Make mistakes in the configurations that come with mtgen, and judge the error message of each."""
    here = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = [(mistake, judge(mistake, Path(folder))) for mistake in mistakes(each or (1 if quick else 6), seed)]
    kinds = {
        kind: [pair for pair in found if pair[0].kind.partition(":")[0] == kind]
        for kind in dict.fromkeys(m.kind.partition(":")[0] for m, _ in found)
    }
    report(
        "Mistakes in configurations",
        here,
        [_row(kind, pairs) for kind, pairs in kinds.items()] + [_row("all", found)],
        json_file,
    )
    for mistake, verdict in found:
        if verdict.suggested is False:
            print(f"not suggested: {mistake.meant} for {verdict.message[:100]}")
    bad = [(m, v) for m, v in found if not (v.refused and v.named and v.remedy)]
    for mistake, verdict in bad:
        print(f"FAILED: {mistake.kind} in {mistake.config}, {mistake.names}: {verdict.message}", file=sys.stderr)
    asked = [v for _, v in found if v.suggested is not None]
    right = sum(bool(v.suggested) for v in asked)
    print(
        f"{len(found)} mistakes, {len(found) - len(bad)} named with a remedy; "
        f"right word suggested for {right} of {len(asked)} ({right / len(asked):.0%})"
    )
    if bad:
        raise SystemExit(1)


def _row(kind: str, pairs: list[tuple[Mistake, Verdict]]) -> dict[str, Any]:
    """One row with the counts of one kind of mistakes."""
    verdicts = [verdict for _, verdict in pairs]
    asked = [v.suggested for v in verdicts if v.suggested is not None]
    return {
        "name": kind,
        "mistakes": len(pairs),
        "named": sum(v.named for v in verdicts),
        "with_a_remedy": sum(v.remedy for v in verdicts),
        "right_word_suggested": sum(map(bool, asked)) / len(asked) if asked else None,
        "each": [{**{k: v for k, v in asdict(m).items() if k != "text"}, **asdict(v)} for m, v in pairs]
        if kind != "all"
        else [],
    }


if __name__ == "__main__":
    typer.run(main)
