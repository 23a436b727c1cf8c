"""`snakemake` as people type it."""

from __future__ import annotations

import sys

import pytest

from counterlens.plan import targets_first
from counterlens.plan.targets_first import pair_options

PAIRS = pair_options()


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("--cores 8 --resources gpu=2 all", "all --cores 8 --resources gpu=2"),
        ("all --cores 8 --resources gpu=2", "all --cores 8 --resources gpu=2"),
        ("--cores 8 --resources gpu=2 mem_mb=9 all", "all --cores 8 --resources gpu=2 mem_mb=9"),
        ("--cores 8 --resources=gpu=2 all", "all --cores 8 --resources=gpu=2"),
        ("--res gpu=2 all --cores 8", "all --res gpu=2 --cores 8"),
        ("--resources gpu=2 all --cores 8 -n", "all --resources gpu=2 --cores 8 -n"),
        ("--resources gpu=2 a b --cores 8", "a b --resources gpu=2 --cores 8"),
        ("--resources gpu=2 --cores 8 all", "--resources gpu=2 --cores 8 all"),
        ("--config scale=published all --cores 8", "all --config scale=published --cores 8"),
        ("-C scale=published all --cores 8", "all -C scale=published --cores 8"),
        ("--set-threads fit=4 all --cores 8", "all --set-threads fit=4 --cores 8"),
        ("--set-resources fit:gpu=1 all -c 8", "all --set-resources fit:gpu=1 -c 8"),
        ("--groups fit=a demo -c 8", "demo --groups fit=a -c 8"),
        ("--resources gpu=2 -- all", "--resources gpu=2 -- all"),
        ("--forcerun metrics --cores 2", "--forcerun metrics --cores 2"),
        ("-n", "-n"),
        ("", ""),
    ],
)
def test_targets_come_first(typed: str, understood: str) -> None:
    assert targets_first.targets_first(typed.split(), PAIRS) == understood.split()


def test_the_options_are_those_of_snakemake() -> None:
    assert {"--resources", "--config", "-C", "--set-threads", "--default-resources"} <= PAIRS
    assert not {"--cores", "--forcerun", "--configfile", "--until"} & PAIRS


def test_the_command_hands_on_what_it_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    import snakemake.cli

    seen: list[list[str]] = []
    monkeypatch.setattr(snakemake.cli, "main", lambda: seen.append(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["snakemake", "--resources", "gpu=2", "all"])
    kept = {name: m for name, m in sys.modules.items() if name.partition(".")[0] == "counterlens"}
    try:
        targets_first.main()
        left = [name for name in sys.modules if name.partition(".")[0] == "counterlens"]
    finally:
        sys.modules.update(kept)
    assert seen == [["all", "--resources", "gpu=2"]]
    assert left == [], "the Snakefile must import the package of its own folder"
