"""Commands and options of before are one error that names the new one."""

import re

import pytest
import typer
from typer.testing import CliRunner

from mtgen.cli import app
from mtgen.cli.renames import OUTPUT_POSITIONS, RENAMED_COMMANDS, RENAMED_OPTIONS
from mtgen.cli.shards import recipe_names
from mtgen.shards.recipe import RECIPES

OPTIONS = [(words, old, new) for words, options in RENAMED_OPTIONS.items() for old, new in options.items()]


def refused(*words: str) -> str:
    """The error with which a command line is refused, on one line."""
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 2, result.output
    return re.sub(r"[\s│]+", " ", result.output)


@pytest.mark.parametrize(("words", "old", "new"), OPTIONS)
@pytest.mark.parametrize("form", ["{} 3", "{}=3"])
def test_an_old_option_names_the_new_one(words: tuple[str, ...], old: str, new: str, form: str) -> None:
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    known = {name for option in command.params for name in option.opts}
    assert new in known and old not in known
    said = refused(*words, "THING", *form.format(old).split())
    assert f"mtgen {' '.join(words)} {old} was renamed; use {new}" in said


def test_a_value_that_looks_like_an_old_option_is_none() -> None:
    result = CliRunner().invoke(app, ["translate", "nothing-here", "--to", "a", "b"])
    assert "renamed" not in result.output


@pytest.mark.parametrize(("words", "new"), RENAMED_COMMANDS.items())
def test_an_old_command_names_the_new_one(words: tuple[str, ...], new: str) -> None:
    assert f"mtgen {' '.join(words)} was renamed; use {new}" in refused(*words, "RUN")


def test_a_run_in_place_of_a_command_about_checkpoints_names_the_commands() -> None:
    said = refused("checkpoints", "digits-32", "--verify")
    assert all(f"mtgen checkpoints {name}" in said for name in ("list", "verify", "prune", "export"))


@pytest.mark.parametrize(("words", "position"), OUTPUT_POSITIONS.items())
def test_a_file_in_the_place_of_before_names_the_option(words: tuple[str, ...], position: int) -> None:
    assert "give the file as --out mine.yaml" in refused(*words, *["digits-32"] * position, "mine.yaml")


@pytest.mark.parametrize(("command", "option"), [("evaluate", "--metrics"), ("export", "--heads")])
def test_names_with_commas_are_to_be_given_one_by_one(command: str, option: str) -> None:
    assert "give the option once per name" in refused(command, "RUN", option, "a,b")


def test_new_and_require_checkpoint_exclude_each_other() -> None:
    assert "exclude each other" in refused("train", "digits-32", "--new", "--require-checkpoint")


def test_the_help_names_every_recipe() -> None:
    assert recipe_names() == RECIPES.names()
