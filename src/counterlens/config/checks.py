"""What no single key of an experiment can tell: pairs, references and combinations."""

from __future__ import annotations

from pathlib import Path

from counterlens.config.experiment import ORIGINAL_DATA, Experiment
from counterlens.errors import UserError


def check(path: Path, experiment: Experiment) -> None:
    """What no single key can tell: pairs, references and combinations."""

    def fail(key: str, message: str) -> None:
        raise UserError(f"{path}: {key}: {message}")

    classes = len(experiment.dataset.classes)
    for pair in experiment.all_pairs():
        if pair[0] == pair[1] or not all(0 <= index < classes for index in pair):
            fail("pairs", f"{list(pair)} is not two different class indices in 0..{classes - 1}")
    if len({frozenset(pair) for pair in experiment.all_pairs()}) < len(experiment.all_pairs()):
        fail("pairs", "a pair stands twice; pairs are unordered")
    for file in experiment.classifier.files:
        if not Path(file).is_file():
            fail("classifier", f"'{file}': no such file")
    for label in experiment.classifier.left_out:
        if not 0 <= label < classes:
            fail("classifier.left_out", f"{label} is no class index in 0..{classes - 1}")
    if reason := experiment.classifier.unsuited(experiment.dataset):
        fail("classifier", reason)
    if experiment.classifier.attribute_weight and not experiment.dataset.attributes:
        fail("classifier.attribute_weight", f"'{experiment.dataset.name}' has no attributes")
    for name, generator in experiment.generators.items():
        for needed in generator.requires():
            if needed not in experiment.generators:
                fail(
                    f"generators.{name}",
                    f"needs generator '{needed}'; defined: {', '.join(experiment.generators)}",
                )
    for name in experiment.generators:
        behind: set[str] = set()
        waiting = [name]
        while waiting:
            needs = {*experiment.generators[waiting.pop()].requires()} - behind
            if name in needs:
                fail(f"generators.{name}", "needs itself, by way of the generators that it needs")
            behind |= needs
            waiting += needs
        if reason := experiment.generators[name].conflict(experiment.generators):
            fail(f"generators.{name}", reason)
        if reason := experiment.generators[name].unsuited(experiment.dataset):
            fail(f"generators.{name}", reason)
    for name, oracle in experiment.oracles.items():
        if oracle.kind == "feature-extractor" and not experiment.classifier.retrainable:
            fail(
                f"oracles.{name}",
                "trains the classifier's architecture again, which is not known of "
                f"'{experiment.classifier.kind}' without a factory, `maps` and `head`",
            )
    for name, method in experiment.methods.items():
        if name == ORIGINAL_DATA:
            fail(f"methods.{name}", "this name is reserved for the reference row of the tables")
        for pair in method.pairs or ():
            if pair not in experiment.all_pairs():
                fail(f"methods.{name}.pairs", f"{list(pair)} is not one of the experiment's pairs")
            if method.pairs and method.pairs.count(pair) > 1:
                fail(f"methods.{name}.pairs", f"{list(pair)} stands twice")
        for needed in method.generators():
            if needed not in experiment.generators:
                known = ", ".join(experiment.generators) or "none"
                fail(f"methods.{name}", f"needs generator '{needed}'; defined: {known}")
        if reason := method.conflict(experiment.generators):
            fail(f"methods.{name}", reason)
        if reason := unknown_class(experiment, name):
            fail(f"methods.{name}", reason)
        for needed in method.generators():
            if method.joint and experiment.generators[needed].per_pair:
                fail(
                    f"methods.{name}",
                    f"one training serves all pairs, but generator '{needed}' is trained per pair",
                )
        if reason := cannot_share(experiment, name):
            fail(f"methods.{name}.trained_as", reason)
        if reason := cannot_build(experiment, name):
            fail(f"methods.{name}", reason)
        if reason := method.unsuited(experiment.dataset, experiment.classifier):
            fail(f"methods.{name}", reason)
    for name in experiment.skipped:
        if name in experiment.methods:
            fail(f"skipped.{name}", "stands under 'methods', too")
    for metric in experiment.metrics:
        for needed in metric.oracles():
            if needed not in experiment.oracles:
                known = ", ".join(experiment.oracles) or "none"
                fail(f"metrics.{metric.kind}", f"needs oracle '{needed}'; defined: {known}")
    names = [column.name for metric in experiment.metrics for column in metric.columns()]
    for name in names:
        if names.count(name) > 1:
            fail("metrics", f"two metrics give the column '{name}'")


def unknown_class(experiment: Experiment, name: str) -> str | None:
    """Which class of a method's pairs one of its generators does not know; None if all."""
    for needed in experiment.methods[name].generators():
        known = experiment.generators[needed].known_classes()
        if known is None:
            continue
        for pair in experiment.method_pairs(name):
            if missing := sorted({*pair} - {*known}):
                return f"generator '{needed}' knows no class {missing[0]}; add it to its `classes`"
    return None


def cannot_share(experiment: Experiment, name: str) -> str | None:
    """Why a method cannot use the training that its `trained_as` names; None if it can."""
    method = experiment.methods[name]
    if method.trained_as is None:
        return None
    known = ", ".join(n for n in experiment.trained_methods() if n != name) or "none"
    if method.trained_as not in experiment.trained_methods():
        return f"'{method.trained_as}' has no training of its own; those that have: {known}"
    other = experiment.methods[method.trained_as]
    ours, theirs = method.training(), other.training()
    different = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
    if different:
        return f"'{method.trained_as}' is trained with other values of {', '.join(different)}"
    missing = {*experiment.method_pairs(name)} - {*experiment.method_pairs(method.trained_as)}
    if missing:
        return f"'{method.trained_as}' is not trained on {[list(pair) for pair in sorted(missing)]}"
    return None


def cannot_build(experiment: Experiment, name: str) -> str | None:
    """Why a method cannot go on from the one that it builds on; None if it can."""
    method = experiment.methods[name]
    earlier = method.builds_on()
    if earlier is None:
        return None
    other = experiment.methods.get(earlier)
    if other is None:
        return (
            f"builds on '{earlier}', which is no method; defined: {', '.join(experiment.methods)}"
        )
    if other.builds_on() is not None:
        return f"builds on '{earlier}', which builds on another method itself"
    missing = {*experiment.method_pairs(name)} - {*experiment.method_pairs(earlier)}
    if missing:
        return f"builds on '{earlier}', which is not run on {[list(p) for p in sorted(missing)]}"
    if other.images is not None and (method.images is None or method.images > other.images):
        return f"builds on '{earlier}', which explains only {other.images} images"
    reason = method.cannot_build_on(other)
    return f"builds on '{earlier}', which {reason}" if reason else None
