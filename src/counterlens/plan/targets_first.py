"""The command `snakemake`, as people type it: `snakemake --cores 8 --resources gpu=2 all`.

Snakemake's options that take NAME=VALUE words (`--resources`, `--config`, `--set-threads`, ...)
swallow every word that follows, so that here `all` would be one of the resources. A word without
"=" cannot be one: it is a target, and is moved to the front. All else is Snakemake's own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def targets_first(words: Sequence[str], pair_options: frozenset[str]) -> list[str]:
    """The same command line, with the targets that an option would swallow in front.

    Args:
        words: what stands behind `snakemake`.
        pair_options: the options that take NAME=VALUE words, as `--resources`.
    """
    targets: list[str] = []
    kept: list[str] = []
    among_pairs = False
    for place, word in enumerate(words):
        if word == "--":
            kept += words[place:]
            break
        if word.startswith("-"):
            # an option may be shortened; `--resources=gpu=2` goes on with more pairs
            name = word.partition("=")[0]
            among_pairs = name in pair_options or (
                name.startswith("--") and any(o.startswith(name) for o in pair_options)
            )
        elif among_pairs and "=" not in word:
            targets.append(word)
            continue
        kept.append(word)
    return [*targets, *kept]


def pair_options() -> frozenset[str]:
    """The options that take a list of NAME=VALUE words, by what Snakemake's own parser says."""
    from snakemake.cli import get_argument_parser

    return frozenset(
        name
        for action in get_argument_parser()._actions
        if action.nargs in ("+", "*")
        and ("=" in str(action.metavar) or action.dest in ("groups", "group_components"))
        for name in action.option_strings
    )


def main() -> None:
    """The console entry: Snakemake on the rearranged words."""
    from snakemake.cli import main as snakemake

    sys.argv[1:] = targets_first(sys.argv[1:], pair_options())
    for name in [name for name in sys.modules if name.partition(".")[0] == "counterlens"]:
        del sys.modules[name]  # the Snakefile takes the package that lies beside it
    snakemake()
