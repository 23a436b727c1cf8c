"""`snakemake --report`: each result once, by experiment, with a title and a caption."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Project


def test_the_report_of_the_workflow(built: Project, tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    text = built.snakemake("all", "--report", str(place))
    shown = re.findall(r"Adding (\S+) \(", text)
    tables = ["c3lt-table1.html", "c3lt-table5.html"]
    assert sorted(shown) == [*tables, "digits-gallery.png", "report.html"]
    page = place.read_text(encoding="utf-8")
    assert "What is the smallest realistic change" in page
    labels = re.findall(r'"labels": ({[^}]*})', page)
    assert sorted(labels) == [
        '{"experiment": "digits"}',
        '{"figure": "A small gallery (digits-gallery)"}',
        '{"table": "A small table (c3lt-table1)"}',
        '{"table": "The attack alone (c3lt-table5)"}',
    ]
    captions = re.findall(r'"caption": "(.*?[^\\])"', page)
    assert len(captions) == 4 and all("small" in caption for caption in captions)
    assert not any("system-message" in caption for caption in captions)
