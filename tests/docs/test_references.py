"""What the documents name is there: files, pages and their headings, configuration keys, metrics."""

import re
from pathlib import Path

import pytest
from helpers.documents import CONFIGS, PAGES, ROOT, copied, fences, inline

from mtgen.config.messages import sections
from mtgen.evaluation.metric import METRICS
from mtgen.tracking.journal import snapshot_name

SOURCES = [*PAGES, *CONFIGS]
NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]
KEYS = {
    *sections(),
    *(f"{section}.{name}".lstrip(".") for section, model in sections().items() for name in model.model_fields),
} - {""}
TOP = {key.partition(".")[0] for key in KEYS}
TREES = ("benchmarks", "configs", "docs", "launch", "mtgen", "tests")
CODE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "mtgen").rglob("*.py")))
NUMBERS = {name.partition("/")[0] for name in METRICS} | {"val", "checkpoint", "data", "loss", "gradient", "speed"}
"""First words of the names of numbers: those of the metrics, and of what a run logs."""
LOGGED = [
    re.compile(re.sub(r"{[^}]*}", r"\\w+", logged))
    for name in re.findall(rf'"((?:{"|".join(NUMBERS)})/[\w{{}}.]+)"', CODE)
    for logged in (name, snapshot_name(name))
]
"""The names of numbers in the code, where `{...}` in one stands for any word."""
FREE = re.compile(r"(balancing\.(preference|groups|parameters)|data\.keep_labels)\..+")
"""Keys below a mapping whose names the user chooses."""


def is_key(text: str) -> bool:
    """Whether `a.b.c` is a key or section of a configuration, possibly with a placeholder in capitals for a name."""
    pattern = re.compile("[^.]+".join(re.escape(part) for part in re.split(r"[A-Z]+", text)))
    return FREE.fullmatch(text) is not None or any(pattern.fullmatch(key) for key in KEYS)


def keys_in(source: Path) -> list[tuple[int, str]]:
    """Line and name of whatever looks like a key: `data.path`, `train.images=...`, `balancing.weighting: ...`."""
    found = []
    for line, code in inline(source):
        for word in re.findall(r"(?<![\w./-])([a-z_]+(?:\.[A-Za-z_]+)+)(?=$|[=:,\s}])", code):
            if word.partition(".")[0] in TOP and not (ROOT / word).exists():
                found.append((line, word))
    return found


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_every_configuration_key_exists(source: Path) -> None:
    wrong = [f"{source.name}:{line}: {key}" for line, key in keys_in(source) if not is_key(key)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_every_file_of_the_repository_exists(source: Path) -> None:
    pieces = [
        *inline(source),
        *((fence.line, fence.text) for fence in (fences(source) if source.suffix == ".md" else [])),
    ]
    pattern = rf"(?<![\w./-])((?:{'|'.join(TREES)})/[\w./*-]*\w)"
    wrong = [
        f"{source.name}:{line}: {word}"
        for line, code in pieces
        for word in re.findall(pattern, code)
        if not list(ROOT.glob(word)) and word not in copied(source) and word not in shown_files(source)
    ]
    assert not wrong, "\n".join(wrong)


def shown_files(source: Path) -> set[str]:
    """Files that the page shows whole, for the reader to write: their name is the first line of the code block."""
    return {fence.text.splitlines()[0].removeprefix("# ") for fence in fences(source) if fence.text.startswith("# ")}


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What headings of a page are called in an address, as GitHub makes it."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES[: len(PAGES)])
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for address in re.findall(r"\]\(([^)\s]+)\)|srcset=\"([^\"]+)\"|src=\"([^\"]+)\"", prose(page)):
        target, _, anchor = "".join(address).partition("#")
        if "://" in target:
            continue
        there = (page.parent / target).resolve() if target else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            wrong.append("".join(address))
    assert not wrong, f"{page.name}: {wrong}"


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_every_metric_exists(source: Path) -> None:
    wrong = []
    for line, code in inline(source):
        for first, name in re.findall(r"(?<![\w./-])([a-z_]+)/([a-z][a-z0-9_]*)(?![\w./*-])", code):
            if first in NUMBERS and not any(number.fullmatch(f"{first}/{name}") for number in LOGGED):
                wrong.append(f"{source.name}:{line}: {first}/{name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "key", ["train.image", "tasks.segmentation.wieght", "data.pathh", "balancing.gat", "evaluate.TASK.weight"]
)
def test_a_key_that_is_none_would_be_found(key: str) -> None:
    assert not is_key(key)


@pytest.mark.parametrize("name", ["test/class_acuracy", "val/class_acuracy", "generated/beauty", "test/fid"])
def test_a_metric_that_is_none_would_be_found(name: str) -> None:
    assert not any(number.fullmatch(name) for number in LOGGED)
