"""The rules as their files have them, and the jobs that they are for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from counterlens.config import ORIGINAL_DATA
from counterlens.plan.plan import Plan
from counterlens.plugins import PACKAGE

RULES = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted(PACKAGE.parents[1].glob("rules/*.smk"))
)
SOURCES = PACKAGE.relative_to(PACKAGE.parents[1])


class Job(dict[str, str]):
    """Wildcards, as Snakemake hands them to a function."""

    def __getattr__(self, name: str) -> str:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def rules() -> dict[str, str]:
    """The rules that run something, by name."""
    bodies = re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", RULES, re.M | re.S)
    return {name: body for name, body in bodies if "shell:" in body}


def asked(body: str, what: str) -> tuple[str, ...]:
    """The words that a rule hands to `project.code`, `project.sources` or `project.settings`."""
    match = re.search(rf"project\.(?:{what})\(([^)]*)\)", body)
    return () if match is None else tuple(ast.literal_eval(f"[{match[1]}]"))


def jobs(project: Plan, body: str) -> Iterator[Job]:
    """Wildcards of all jobs of a rule, one direction and one scope of each."""
    if "{models}" in body:
        for name, models in project.models.items():
            for section in ("classifier", "oracle", "generator"):
                if f"{{{section}}}" in body:
                    for each in getattr(models, f"{section}s"):
                        if "project.diffusion_models()" in body and not re.fullmatch(
                            project.diffusion_models(), each
                        ):
                            continue
                        yield Job({"models": name, section: each, "scope": "all-classes"})
    elif "{experiment}" in body:
        for name, e in project.experiments.items():
            rows = e.methods if "{method}" in body else (ORIGINAL_DATA,)
            for method in rows:
                source, target = map(str, e.method_pairs(method)[0])
                place = {"experiment": name, "method": method, "source": source, "target": target}
                yield Job(place)
    elif "{dataset}" in body:
        yield from (Job(dataset=name) for name in project.datasets)
    else:
        for kind in ("table", "figure"):
            if f"{{{kind}}}" in body:
                yield from (Job({kind: name}) for name in getattr(project, f"{kind}s"))
        if "{weight}" in body:
            yield Job(weight="any")
