"""What `bench` measured, in lines for people and as a paper's table of times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterlens.config import Table
from counterlens.plan.inputs import TIME


def in_words(result: Mapping[str, Any]) -> str:
    """The measurements in lines for people."""
    source, target = result["direction"]
    lines = [
        f"{result['experiment']} ({result['scale']}), {source} to {target}, {result['device']}"
        + (", untrained networks" if result["untrained"] else "")
    ]
    lines += [f"  {name}: {line(entry)}" for name, entry in result["methods"].items()]
    lines += [f"  {name}: skipped: {reason}" for name, reason in result["skipped"].items()]
    return "\n".join(lines)


def line(entry: Mapping[str, Any]) -> str:
    """One method's time and its ratios."""
    parts = [
        f"{entry['seconds_per_image']:.3g} s per counterfactual ({entry['images']} images, median "
        f"of {entry['repeats']})"
    ]
    if (published := entry.get("paper_seconds_per_image")) is not None:
        parts.append(f"paper {published:.3g} s")
    if bare := entry.get("bare"):
        parts.append(f"{bare['ratio']:.3f} x its bare passes ({bare['name']})")
    for key in ("beside", "float32"):
        if rival := entry.get(key):
            parts.append(f"{rival['ratio']:.3f} x the time of {rival['name']} ({compared(rival)})")
    if peer := entry.get("peer"):
        speed = (
            f"{1 / peer['ratio']:.3g} x the images per second of"
            if peer["agree"]
            else "not comparable with"
        )
        parts.append(f"{speed} {peer['name']} ({peer['images']} images; {compared(peer)})")
    return "; ".join(parts)


def compared(rival: Mapping[str, Any]) -> str:
    """What a method's counterfactuals and a rival's are worth."""
    return ", ".join(
        f"{title} {both['ours']:.3f} and {both['theirs']:.3f}"
        for title, both in rival["results"].items()
    )


def beside_paper(result: Mapping[str, Any], table: Table) -> str:
    """The measured times as a Markdown table, in milliseconds, with the paper's."""

    def shown(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds * TIME.scale:.3g}"

    labels = {row.method: row.label for row in table.rows}
    lines = [
        f"# {table.title}",
        "",
        "| | batch | ms per image | peer, ms | paper, ms |",
        "|:---|---:|---:|---:|---:|",
    ]
    for name, entry in result["methods"].items():
        peer = entry.get("peer", {}).get("seconds_per_image")
        numbers = (entry["seconds_per_image"], peer, entry.get("paper_seconds_per_image"))
        cells = [labels.get(name, name), str(entry["images"]), *map(shown, numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    networks = ", untrained networks" if result["untrained"] else ""
    lines += [
        "",
        f"Scale {result['scale']}{networks}, {result['device']}.",
    ]
    lines += [f"{labels.get(n, n)}: not run: {why}" for n, why in result["skipped"].items()]
    return "\n".join(lines) + "\n"
