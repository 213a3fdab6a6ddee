"""The documents of the repository, as tests read them: their code blocks, inline code, and the commands in both."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / f"{name}/README.md" for name in ("launch", "data_shards")),
]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SHELL = ("bash", "")


@dataclass(frozen=True)
class Fence:
    """A code block of a page: its language ("" where none is named), its text, and the number of its first line."""

    page: Path
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command of mtgen in a page; one in a sentence may leave its arguments out."""

    page: Path
    line: int
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: mtgen {' '.join(self.words)}"


SHORT = (
    "workers=0 batch_size=8 train.images=16 train.log_every=8 checkpoint.every=8 evaluate.every=16 "
    "evaluate.samples=100 "
    "device=cpu precision=fp32 generator.widths=[8,8,8,8] discriminator.widths=[8,8,8,8]"
).split()
"""What trainings of documents are shortened by."""


def fences(page: Path) -> list[Fence]:
    """The code blocks of a page, in order."""
    found, begin, language, lines = [], 0, "", []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif not begin:
            begin, language, lines = number + 1, line[3:].strip(), []
        else:
            found.append(Fence(page, begin, language, "\n".join(lines) + "\n"))
            begin = 0
    return found


def inline(page: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each piece of inline code; of a configuration or a script, that of its comments."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside and (page.suffix == ".md" or "#" in line):
            yield from (
                (number, code)
                for code in re.findall(r"`([^`]+)`", line if page.suffix == ".md" else line.partition("#")[2])
            )


def split(text: str) -> Iterator[list[str]]:
    """The commands of a line of shell, as words, without comments and redirections."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set(";&|<>"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def _of_line(page: Path, number: int, line: str, whole: bool) -> Iterator[Command]:
    for words in split(line):
        starts = [place for place, word in enumerate(words) if word.rpartition("/")[2] == "mtgen"]
        if starts and all("=" in word for word in words[: starts[0]]):
            given = tuple(word for word in words[starts[0] + 1 :] if word != "...")
            yield Command(page, number, given, whole and "..." not in words)
        elif "--" in words and starts:  # behind `ray job submit ... --`
            yield from _of_line(page, number, shlex.join(words[words.index("--") + 1 :]), whole)


def demo() -> list[Command]:
    """The commands of `make demo`: those that it runs, and those that it ends by naming."""
    page, found = ROOT / "Makefile", []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if match := re.search(r"\$\(VENV\)/bin/mtgen (.*)", line):
            words = re.split(r"\s{2,}|\"", match[1].replace("$(WORKERS)", "2"))[0]
            found.append(Command(page, number, tuple(words.split()), True))
    return found


def lines_of(fence: Fence) -> Iterator[tuple[int, str]]:
    """Number and text of each line of shell; one that goes on behind a backslash is one line."""
    pending, begin = "", fence.line
    for number, line in enumerate(fence.text.splitlines(), fence.line):
        if not pending:
            begin = number
        pending += line.removesuffix("\\")
        if not line.endswith("\\"):
            yield begin, pending
            pending = ""


def copied(page: Path) -> dict[str, str]:
    """File -> configuration that the page has the reader copy there (`mtgen configs copy NAME --out FILE`)."""
    found = [command.words for command in commands(page)]
    return {words[4]: words[2] for words in found if words[:2] == ("configs", "copy") and words[3:4] == ("--out",)}


def commands(page: Path) -> list[Command]:
    """Every command of mtgen in a page: in its code blocks, between backticks, and on lines of a file's comments."""
    if page.name == "Makefile":
        return demo()
    found: list[Command] = []
    for fence in fences(page) if page.suffix == ".md" else []:
        if fence.language in SHELL:
            for number, line in lines_of(fence):
                found += _of_line(page, number, line, True) if "mtgen" in line else []
    for number, code in inline(page):
        found += _of_line(page, number, code, False) if code.startswith("mtgen ") else []
    if page.suffix != ".md":
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if match := re.match(r"#\s+(mtgen .*)", line):
                found += _of_line(page, number, match[1], True)
    return found
