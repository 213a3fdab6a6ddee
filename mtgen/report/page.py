"""Rendering of sections into one HTML page that needs no other file and can run no other script than its own."""

import base64
import hashlib
import time
from importlib.resources import files
from typing import Any

from mtgen.report.blocks import ReportSection


def render(title: str, subtitle: str, sections: list[ReportSection]) -> str:
    """The page. All text is escaped, and a content security policy allows style and script by their hashes."""
    from jinja2 import Environment, StrictUndefined  # not needed for inference

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = asset("page.css"), asset("base.js") + asset("page.js")
    data: list[Any] = []

    def add_data(content: Any) -> int:
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
        add_data=add_data,
        data=data,
    )


def asset(name: str) -> str:
    """The text of a template, style or script; `base.js` and `page.css` are also used by the explore page."""
    return (files("mtgen.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
