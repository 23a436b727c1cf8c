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
    for name, entry in result["methods"].items():
        line = (
            f"  {name}: {entry['seconds_per_image']:.3g} s per counterfactual "
            f"({entry['images']} images, median of {entry['repeats']})"
        )
        if (published := entry.get("paper_seconds_per_image")) is not None:
            line += f"; paper {published:.3g} s"
        if "bare" in entry:
            line += f"; {entry['bare']['ratio']:.3f} x its bare passes ({entry['bare']['passes']})"
        if other := entry.get("beside"):
            line += f"; {other['ratio']:.3f} x the time of {other['name']}"
        if peer := entry.get("peer"):
            both = f"validity {peer['validity']['ours']:.3f} and {peer['validity']['peer']:.3f}"
            ratio = f"{peer['ratio']:.3f} x" if peer["agree"] else "not comparable with"
            line += f"; {ratio} {peer['name']} {peer['version']} ({both})"
        if exact := entry.get("float32"):
            pairs = {"validity": exact["validity"], "LPIPS-oracle": exact.get("lpips_oracle")}
            line += f"; {exact['ratio']:.3f} x itself in float32 (" + ", ".join(
                f"{title} {both['ours']:.3f} and {both['float32']:.3f}"
                for title, both in pairs.items()
                if both
            )
            line += ")"
        if alone := entry.get("sequential"):
            line += "; " + (
                f"{alone['speed_up']:.1f} x the images per second of the search one image at a time"
                if alone["agree"]
                else "not comparable with the search one image at a time"
            )
            line += (
                f" ({alone['seconds_per_image']:.3g} s each; " if alone["agree"] else " ("
            ) + f"{alone['same']:.0%} of {alone['images']} images the same, {alone['found']} found)"
        lines.append(line)
    lines += [f"  {name}: skipped: {reason}" for name, reason in result["skipped"].items()]
    return "\n".join(lines)


def beside_paper(result: Mapping[str, Any], table: Table) -> str:
    """The measured times as a Markdown table, in milliseconds, with the paper's."""

    def shown(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds * TIME.scale:.3g}"

    labels = {row.method: row.label for row in table.rows}
    lines = [
        f"# {table.title}",
        "",
        "| | batch | ms per image | ms per image, one at a time as published | paper, ms |",
        "|:---|---:|---:|---:|---:|",
    ]
    for name, entry in result["methods"].items():
        alone = entry.get("sequential", {}).get("seconds_per_image")
        numbers = (entry["seconds_per_image"], alone, entry.get("paper_seconds_per_image"))
        cells = [labels.get(name, name), str(entry["images"]), *map(shown, numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    networks = ", untrained networks" if result["untrained"] else ""
    lines += [
        "",
        f"Scale {result['scale']}{networks}, {result['device']}.",
    ]
    lines += [f"{labels.get(n, n)}: not run: {why}" for n, why in result["skipped"].items()]
    return "\n".join(lines) + "\n"
