"""What `bench` is asked to measure, and whether the experiment has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from counterlens.bench.measure import Rounds
from counterlens.config import Experiment, Pair, Table, pair_name
from counterlens.errors import UserError
from counterlens.plan.inputs import TIME


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        pair: its name; None is the experiment's first.
        methods: their names; none means those of the table, or all.
        images: test images of the pair's first class, as many as there are and the experiment
            gives the method.
        rounds: how often.
        beside: the name of a method that each other one is compared with.
        peers: other implementations, each `torchattacks` or the path of a Python file.
        peer_images: so many of the images are for the peers; None: all.
        untrained: networks have fresh weights, enough for a method whose work does not depend on
            them. Else trained models are read from `results/`, and a method without them is
            skipped with the reason.
        table: one of times, whose paper's number is put beside each of ours.
    """

    pair: str | None = None
    methods: Sequence[str] = ()
    images: int = 256
    rounds: Rounds = field(default_factory=Rounds)
    beside: str | None = None
    peers: Sequence[str] = ()
    peer_images: int | None = None
    untrained: bool = False
    table: Table | None = None


def check(experiment: Experiment, settings: Settings) -> None:
    """The settings, before anything runs.

    Raises:
        UserError: a number is too small, or a method is not the experiment's.
    """
    least = {
        "--images": (settings.images, 1),
        "--repeats": (settings.rounds.repeats, 1),
        "--warm-up": (settings.rounds.warm_up, 0),
        "--peer-images": (1 if settings.peer_images is None else settings.peer_images, 1),
    }
    for option, (value, lowest) in least.items():
        if value < lowest:
            raise UserError(f"{option} {value}: must be at least {lowest}")
    named = [("--method", name) for name in settings.methods]
    named += [("--beside", settings.beside)] if settings.beside else []
    for option, name in named:
        if name not in experiment.methods:
            raise UserError(f"{option} {name}: unknown; allowed: {', '.join(experiment.methods)}")


def chosen_pair(experiment: Experiment, name: str | None) -> Pair:
    """The pair of a name; the first of the experiment without one.

    Raises:
        UserError: the experiment has none of that name.
    """
    pairs = {pair_name(pair): pair for pair in experiment.all_pairs()}
    if name is None:
        return experiment.pairs[0]
    if name not in pairs:
        raise UserError(f"--pair {name}: experiment {experiment.name} has {', '.join(pairs)}")
    return pairs[name]


def paper_seconds(table: Table, experiment: Experiment) -> dict[str, float | None]:
    """A paper's seconds per image of the rows of its table of times that the experiment has.

    Raises:
        UserError: the table is none of times, or is not about the experiment.
    """
    values = table.paper_values.get(experiment.name, {})
    if TIME.name not in table.columns or experiment.name not in table.experiments:
        raise UserError(
            f"--table {table.name}: is no table of times about {experiment.name}; it has the "
            f"columns {', '.join(table.columns)} of {', '.join(table.experiments)}"
        )
    return {
        row.method: values[row.method][TIME.name] / TIME.scale
        if TIME.name in values.get(row.method, {})
        else None
        for row in table.rows
        if row.method in experiment.methods
    }
