"""Every command in the documents is one of mtgen's, with options, settings and files that there are."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers.documents import CONFIGS, PAGES, ROOT, Command, commands, copied

from mtgen.cli import app
from mtgen.config import find_entry, load, parse_options
from mtgen.config.presets import find_preset
from mtgen.errors import UserError
from mtgen.evaluation.evaluate import check_names
from mtgen.shards.recipe import RECIPES

TOP = typer.main.get_command(app)
USAGE = typer.BadParameter.__mro__[1]
"""typer's class of all errors in a command's words; it has no public name."""
STANDS_FOR = {"CONFIG": "digits-32", "FILE": "digits-32"}
ANSWERED = ("--help", "--install-completion", "--version")
"""Options at which the parser answers and ends."""
SOURCES = [*PAGES, *CONFIGS, ROOT / "Makefile", *sorted((ROOT / "launch").glob("*.sh"))]


def parsed(command: Command) -> tuple[str, dict[str, Any]]:
    """The name of a command and its parameters, as typer's own parser finds them."""
    words = [STANDS_FOR.get(word, word) for word in command.words if word not in ANSWERED]
    context, name = TOP.make_context("mtgen", words, resilient_parsing=not words), list[str]()
    while hasattr(context.command, "commands"):
        rest = [*context._protected_args, *context.args]
        if not rest and (not command.whole or set(ANSWERED) & set(command.words)):
            break
        found, own, rest = context.command.resolve_command(context, rest)
        context, name = own.make_context(found, rest, parent=context), [*name, found]
    return " ".join(name), context.params


def added(page: Path) -> list[str]:
    """Names of tasks, metrics and recipes that the examples of a page register."""
    return re.findall(r'register\("([^"]+)"\)', page.read_text(encoding="utf-8"))


def settings_of(command: Command, name: str, given: dict[str, Any]) -> None:
    """The settings of a command must be valid, except for plug-ins that the page adds and files of the user."""
    if any(own in word for own in added(command.page) for word in command.words):
        return
    if given.get("config") and name in ("train", "plan", "submit", "slurm", "kube", "configs show"):
        file = given["config"]
        if not file.is_file():  # the reader's own copy
            file = find_preset(Path(copied(command.page).get(str(file), "digits-32")))
        load(file, given["overrides"])
    if name == "shards make" and command.whole:
        options = [option for option in given["options"] or [] if not option.endswith(".txt")]
        parse_options(find_entry(RECIPES, given["recipe"]).Options, options)
    if name == "evaluate" and given.get("metrics"):
        check_names(given["metrics"])


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_taken_by_the_real_parser(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wrong = []
    for command in commands(source):
        try:
            settings_of(command, *parsed(command))
        except USAGE as error:
            if command.whole or type(error).__name__ != "MissingParameter":
                wrong.append(f"{command}: {error.format_message()}")
        except UserError as error:
            wrong.append(f"{command}: {error}")
    assert not wrong, "\n".join(wrong)


def test_commands_are_found_in_blocks_sentences_comments_and_behind_other_programs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Say `mtgen ui` or `mtgen train ...`.\n```bash\nA=1 mtgen conflicts \\\n  RUN # why\n"
        "ray job submit -- mtgen train x.yaml > log; .venv/bin/mtgen plan y\n```\n"
        "```python\nmtgen.load\n```\n"
    )
    assert [(c.line, c.words, c.whole) for c in commands(page)] == [
        (3, ("conflicts", "RUN"), True),
        (5, ("train", "x.yaml"), True),
        (5, ("plan", "y"), True),
        (1, ("ui",), False),
        (1, ("train",), False),
    ]
    config = tmp_path / "config.yaml"
    config.write_text("# First\n#   mtgen shards make digits there\nname: x # see `mtgen plan`\n")
    assert [c.words for c in commands(config)] == [("plan",), ("shards", "make", "digits", "there")]


@pytest.mark.parametrize(
    "words", ["train digits-32 --nonsense", "trian digits-32", "ui 5", "sample RUN -n none", "configs show FILE x.y=1"]
)
def test_a_command_that_is_none_would_be_found(words: str) -> None:
    command = Command(ROOT / "README.md", 1, tuple(words.split()), True)
    with pytest.raises((USAGE, UserError)):
        settings_of(command, *parsed(command))
