"""Markup in a run's names, tags, settings and data adds no element and no attribute to its page."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mtgen.config import Config
from mtgen.report import write_comparison, write_report
from mtgen.tracking.journal import Journal

MARKUP = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "</title></pre><svg/onload=alert(1)>",
    "<!--",
    "]]><iframe srcdoc='<b>'>",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(1)",
]
HARMLESS = "word"


class Elements(HTMLParser):
    """Every element of a page in order, with the names of its attributes; texts are left out."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attributes)))

    handle_startendtag = handle_starttag


def run(folder: Path, text: str) -> Path:
    """A run in which everything that a user can write is `text`."""
    config = {
        "name": "run",
        "data": {"path": f"data/{text}"},
        "tracking": {"experiment": text, "group": text},
        "train": {"init_from": text},
    }
    card = {
        "name": text,
        "classes": [text, f"{text} 2"],
        "mask_classes": [text],
        "domains": [text],
        "source": text,
        "licence": text,
        "splits": {text: {"samples": 1, "shards": text}},
    }
    tags = {
        name: text
        for name in (
            "dataset.name",
            "dataset.fingerprint",
            "mtgen.version",
            "mlflow.source.git.commit",
            "mlflow.user",
            text,
        )
    }
    journal = Journal(folder)
    journal.append(
        0,
        start={"id": "0", "name": text, "config": Config.model_validate(config).to_yaml(), "card": card, "tags": tags},
    )
    for images in (1, 2):
        journal.row(images, {f"test/{text}": images, f"loss_d/{text}": 1.0, f"data/damaged_{text}": 1.0, text: 1.0})
    journal.phase(2, text)
    journal.append(2, status="KILLED")
    journal.append(
        2,
        start={"id": "1", "name": text, "config": Config.model_validate(config).to_yaml(), "card": card, "tags": tags},
    )
    journal.append(3, status=text)
    journal.close()
    alarm = {"images": 1, "kind": text, "what": text, "help": text}
    (folder / "alarms.jsonl").write_text(json.dumps(alarm) + f"\n{text}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("text", MARKUP)
def test_a_report_of_a_run_with_markup_everywhere_has_no_additional_element(text: str, tmp_path: Path) -> None:
    plain, hostile = (
        write_report(run(tmp_path / name, words)) for name, words in (("plain", HARMLESS), ("hostile", text))
    )
    assert Elements(hostile).found == Elements(plain).found
    assert HARMLESS in plain.read_text(encoding="utf-8") and len(Elements(plain).found) > 50


@pytest.mark.parametrize("text", MARKUP)
def test_a_comparison_of_runs_with_markup_everywhere_has_no_additional_element(text: str, tmp_path: Path) -> None:
    pages = []
    for name, words in (("plain", HARMLESS), ("hostile", text)):
        two = [run(tmp_path / name / str(number), f"{words}{number}") for number in range(2)]
        pages.append(Elements(write_comparison(two, tmp_path / name / "page.html")).found)
    assert pages[0] == pages[1] and len(pages[0]) > 30
