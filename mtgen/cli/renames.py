"""Commands and options of before, each an error that names the new one."""

from typing import Any

from typer.core import TyperGroup

RENAMED_COMMANDS: dict[tuple[str, ...], str] = {("tasks",): "mtgen conflicts"}
"""Words of an old command -> the command to use."""

RENAMED_OPTIONS: dict[tuple[str, ...], dict[str, str]] = {
    ("train",): {"--resume": "--require-checkpoint"},
    ("plan",): {"--gpus": "--workers"},
    ("smoke",): {"--keep": "--out"},
    ("evaluate",): {"--against": "--data", "--n": "--num-images"},
    ("report",): {"--against": "--baseline"},
    ("sample",): {"--n": "--num-images"},
    ("export",): {"--to": "--out"},
    ("shards", "view"): {"--n": "--num-images"},
}
"""Words of a command -> its old options -> the options to use."""


OUTPUT_POSITIONS: dict[tuple[str, ...], int] = {("configs", "copy"): 1, ("configs", "schema"): 0}
"""Words of a command -> position of an argument that is now `--out`."""


class RenamingGroup(TyperGroup):
    """A group of commands that knows what they and their options were called before."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name; old names end with an error, exit status 2."""
        words = (*_words(ctx), args[0])
        if new := RENAMED_COMMANDS.get(words):
            ctx.fail(f"mtgen {' '.join(words)} was renamed; use {new}")
        name, command, rest = super().resolve_command(ctx, args)
        options = RENAMED_OPTIONS.get(words, {})
        for argument in rest[: rest.index("--")] if "--" in rest else rest:
            option = argument.partition("=")[0]
            if option in options:
                ctx.fail(f"mtgen {' '.join(words)} {option} was renamed; use {options[option]}")
        arguments = [
            word
            for word, before in zip(rest, ["", *rest][:-1], strict=True)
            if "-" != word[:1] and before not in ("--out", "-o")
        ]
        if words in OUTPUT_POSITIONS and len(arguments) > (position := OUTPUT_POSITIONS[words]):
            ctx.fail(f"mtgen {' '.join(words)}: give the file as --out {arguments[position]}")
        return name, command, rest


class CheckpointsGroup(RenamingGroup):
    """`mtgen checkpoints`, which was one command that took a run and options."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As `RenamingGroup`; a run in place of a command is an error that names the commands."""
        if args[0] not in self.commands:
            commands = ", ".join(f"mtgen checkpoints {name}" for name in self.commands)
            ctx.fail(f"{args[0]!r} is not a command of mtgen checkpoints; use {commands}")
        return super().resolve_command(ctx, args)


def _words(ctx: Any) -> tuple[str, ...]:
    """The words of the command so far, without the program."""
    return () if ctx.parent is None else (*_words(ctx.parent), str(ctx.info_name))
