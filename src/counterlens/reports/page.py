"""Rendering of HTML pages that open offline: everything inline, everything escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent


def script_json(content: Any) -> Markup:
    r"""JSON for a `<script>` element: no value can close the element (`<` becomes `\u003c`)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def render(template: str, **content: Any) -> str:
    """A template of this folder with the package's style and script inlined.

    Every value of `content` is escaped where it is printed.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["script_json"] = script_json
    own = {
        "style": Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        "script": Markup((FOLDER / "report.js").read_text(encoding="utf-8")),
    }
    return environment.get_template(template).render(**own, **content)
