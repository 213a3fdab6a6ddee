"""Sections -> one HTML page that needs no other file and may run nothing but its own script."""

import base64
import hashlib
import time
from importlib.resources import files
from typing import Any

from mtgen.report.blocks import ReportSection


def render(title: str, subtitle: str, sections: list[ReportSection]) -> str:
    """The page. Every text from a run is escaped, and a content security policy names style and script by their hashes."""
    from jinja2 import Environment, StrictUndefined  # who only draws and reads with a model does not need it

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = asset("page.css"), asset("base.js") + asset("page.js")
    data: list[Any] = []

    def place(content: Any) -> int:
        data.append(content)
        return len(data) - 1

    page = environment.from_string(asset("page.html"))
    return page.render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        written=time.strftime("%Y-%m-%d %H:%M"),
        place=place,
        data=data,
    )


def asset(name: str) -> str:
    """A file that pages are made of: their style and their script, of which `base.js` is not the report's alone."""
    return (files("mtgen.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
