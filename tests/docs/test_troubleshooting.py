"""The messages in docs/troubleshooting.md are those of the program."""

import ast
import re
from collections.abc import Iterator

import pytest
from helpers.documents import ROOT

PAGE = ROOT / "docs/troubleshooting.md"
HOLE = "\0"
"""What differs from one message to the next."""


def template(node: ast.expr) -> str:
    """A string of the program, with a hole for each value that is put into it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    return HOLE


def templates() -> Iterator[str]:
    for path in sorted((ROOT / "mtgen").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                yield template(node)


TEMPLATES = list(templates())
QUOTES = [line.removeprefix("> ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("> ")]


def printed(quote: str) -> bool:
    """Whether a message of the program has the quote's pieces, one after the other, with what differs between them."""
    pieces = [re.escape(piece.strip()) for piece in quote.split("...") if piece.strip()]
    pattern = re.compile(".{1,60}?".join(pieces))
    return any(pattern.search(text) for text in TEMPLATES)


@pytest.mark.parametrize("quote", QUOTES)
def test_every_quoted_message_is_one_of_the_program(quote: str) -> None:
    assert printed(quote), f"no message of mtgen reads: {quote}"


def test_the_page_is_about_the_messages_that_end_a_command_and_a_wrong_quote_would_be_found() -> None:
    assert len(QUOTES) > 20 and len(set(QUOTES)) == len(QUOTES)
    assert not printed("... is being trained by ... already")


def test_every_quote_is_followed_by_a_remedy() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line]
    for line, following in zip(lines, lines[1:], strict=False):
        assert not line.startswith("> ") or re.match(r"[`A-Z]", following), line
