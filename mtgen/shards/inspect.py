"""What a folder or file looks like, and which recipes with which options would read it."""

import contextlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtgen.data.dataset_card import CARD_FILE
from mtgen.errors import ConfigError
from mtgen.shards.listing import CERTAIN, IMPOSSIBLE, Listing, Proposal
from mtgen.shards.recipe import RECIPES
from mtgen.utils.shell import shell_command
from mtgen.utils.yaml_text import override

MAX_SUFFIXES_SHOWN = 8
ARCHIVES = {
    ".zip": "unzip",
    ".gz": "tar -xzf",
    ".tgz": "tar -xzf",
    ".bz2": "tar -xjf",
    ".xz": "tar -xJf",
    ".7z": "7z x",
}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}


@dataclass(frozen=True)
class RecipeMatch:
    """A recipe that could read a folder or file, and how."""

    recipe: str
    proposal: Proposal

    def command(self, out: str | Path) -> str:
        """The complete command that makes the data set."""
        options = [f"{key}={_text(value)}" for key, value in self.proposal.options.items()]
        return shell_command(f"mtgen shards make {self.recipe}", out, *options)


def matches(listing: Listing, without: str = "") -> list[RecipeMatch]:
    """The recipes that could read a folder or file, best first; `without` names one that is not asked."""
    found = [
        RecipeMatch(name, proposal)
        for name in RECIPES.names()
        if name != without
        for proposal in RECIPES[name].detect(listing)
    ]
    return sorted(found, key=lambda match: -match.proposal.certainty)


def better_recipe(recipe: str, listing: Listing) -> str:
    """Why another recipe is certain to fit better, and its command; empty if none is."""
    for match in matches(listing, without=recipe):
        if match.proposal.certainty >= CERTAIN:
            return f"{match.proposal.reason}: that is read by `{match.command('OUT')}`"
    return ""


def inspect(path: str | Path) -> str:
    """Look at a folder or file, and return in lines what is in it and which commands would read it, best first.

    Raises:
        DataError: it does not exist.
    """
    listing = Listing.of(path)
    lines = [f"{listing.path}: {_content(listing)}", *listing.left_alone.lines()]
    found = matches(listing)
    commands = [*_shards(listing), *_recipes(listing, found)]
    if not commands:
        failed = [f"{match.recipe}: {match.proposal.reason}" for match in found]
        return "\n".join([*lines, *(failed or [_nothing(listing)])])
    for number, (reason, command) in enumerate(commands, 1):
        lines += [f"{number}. {reason}", f"   {command}"]
    return "\n".join([*lines, "Add --check to see what a recipe understands before anything is written."])


def _recipes(listing: Listing, found: list[RecipeMatch]) -> Iterator[tuple[str, str]]:
    """What the recipes propose: if one is certain, only what is."""
    name = listing.path.stem if listing.path.is_file() else listing.path.name
    best = max((match.proposal.certainty for match in found), default=0)
    for match in found:
        if match.proposal.certainty > IMPOSSIBLE and (best < CERTAIN or match.proposal.certainty >= CERTAIN):
            yield f"{match.recipe}: {match.proposal.reason}", match.command(Path("data_shards", name or "mine"))


def _shards(listing: Listing) -> Iterator[tuple[str, str]]:
    """What is a data set, or shards, already."""
    if CARD_FILE in map(str, listing.files):
        yield "a data set of mtgen", shell_command("mtgen shards stats", listing.root)
    elif (tars := listing.with_suffix(".tar")) and listing.path.is_dir():
        first = listing.root / tars[0]
        names = _members(first)
        if any(len(Path(name).parts) > 1 for name in names) and len(tars) == 1:
            yield f"an archive of folders, such as {names[0]}: unpack it", shell_command("tar -xf", first)
        yield f"{len(tars):,} tar files, such as {tars[0]}", shell_command("mtgen shards describe", listing.path)
    elif tars:
        yield "a tar file: shards are described by their folder", shell_command("mtgen shards describe", listing.root)


def _members(path: Path) -> list[str]:
    try:
        with tarfile.open(path) as tar:
            return [member.name for _, member in zip(range(20), tar, strict=False) if member.isfile()]
    except (tarfile.TarError, OSError, ValueError, OverflowError):
        return []


def _content(listing: Listing) -> str:
    if listing.path.is_file():
        return f"a file of {listing.path.stat().st_size:,} bytes"
    suffixes = sorted(listing.by_suffix.items(), key=lambda item: -len(item[1]))
    shown = [f"{len(files):,} {suffix or 'without suffix'}" for suffix, files in suffixes[:MAX_SUFFIXES_SHOWN]]
    folders = sorted(listing.folders())
    inside = f", in {', '.join(folders[:6])}{', ...' if len(folders) > 6 else ''}" if folders else ""
    return f"{len(listing.files):,} files ({', '.join(shown)}){inside}" if shown else "no files"


def _nothing(listing: Listing) -> str:
    for suffix, files in listing.by_suffix.items():
        if suffix in ARCHIVES:
            return f"{files[0]} is an archive; unpack it: {shell_command(ARCHIVES[suffix], listing.root / files[0])}"
        if suffix in VIDEOS:
            command = shell_command("ffmpeg -i", listing.root / files[0], "frames/%06d.png")
            return f"{files[0]} is a video; take images from it first: {command}"
    return "no recipe reads this; `mtgen shards make --help` lists the recipes"


def _text(value: Any) -> str:
    """An option's value as `KEY=VALUE` takes it, which is YAML."""
    parsed: dict[str, Any] = {}
    if isinstance(value, str):
        with contextlib.suppress(ConfigError):  # not YAML: has to be quoted
            override(parsed, [f"key={value}"])
        if parsed.get("key") == value:
            return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
