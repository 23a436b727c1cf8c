"""What no single key of a file can tell: references between its parts, and combinations."""

from __future__ import annotations

from pathlib import Path

from counterlens.config.experiment import ORIGINAL_DATA, Experiment
from counterlens.config.models import Models
from counterlens.errors import UserError


def check_models(path: Path, models: Models, classifier_key: str | None = None) -> None:
    """References between models, and what none of them can do.

    Args:
        classifier_key: where the file has its only classifier, if not under `classifiers`.
    """

    def fail(key: str, message: str) -> None:
        raise UserError(f"{path}: {key}: {message}")

    dataset = models.dataset
    for name, classifier in models.classifiers.items():
        place = classifier_key or f"classifiers.{name}"
        for file in classifier.files:
            if not Path(file).is_file():
                fail(place, f"'{file}': no such file")
        if reason := classifier.unsuited(dataset):
            fail(place, reason)
        if classifier.attribute is None and not dataset.classes:
            fail(place, f"needs an `attribute`: '{dataset.name}' has no classes of its own")
        if classifier.attribute is not None and classifier.attribute not in dataset.attributes:
            known = ", ".join(dataset.attributes) or "none"
            fail(f"{place}.attribute", f"'{classifier.attribute}' is unknown; known: {known}")
        classes = len(models.class_names(name))
        for label in classifier.left_out:
            if not 0 <= label < classes:
                fail(f"{place}.left_out", f"{label} is no class index in 0..{classes - 1}")
        if classifier.attribute_weight and not dataset.attributes:
            fail(f"{place}.attribute_weight", f"'{dataset.name}' has no attributes")
    for section in ("generators", "oracles"):
        for name, options in getattr(models, section).items():
            known = ", ".join(models.classifiers)
            if options.classifier is not None and options.classifier not in models.classifiers:
                fail(f"{section}.{name}.classifier", f"'{options.classifier}'; defined: {known}")
            if options.uses_classifier and options.classifier is None:
                fail(f"{section}.{name}.classifier", f"key is missing; name one of {known}")
    for name, generator in models.generators.items():
        for needed in generator.requires():
            if needed not in models.generators:
                known = ", ".join(models.generators)
                fail(f"generators.{name}", f"needs generator '{needed}'; defined: {known}")
    for name, generator in models.generators.items():
        behind: set[str] = set()
        waiting = [name]
        while waiting:
            needs = {*models.generators[waiting.pop()].requires()} - behind
            if name in needs:
                fail(f"generators.{name}", "needs itself, by way of the generators that it needs")
            behind |= needs
            waiting += needs
        if reason := generator.conflict(models.generators) or generator.unsuited(dataset):
            fail(f"generators.{name}", reason)
    for name, oracle in models.oracles.items():
        if not oracle.uses_classifier or oracle.classifier is None:
            continue
        recipe = models.classifiers[oracle.classifier]
        if not recipe.retrainable:
            fail(
                f"oracles.{name}",
                "trains the classifier's architecture again, which is not known of "
                f"'{recipe.kind}' without a factory, `maps` and `head`",
            )


def check_experiment(path: Path, experiment: Experiment) -> None:
    """What no single key can tell: pairs, references and combinations."""

    def fail(key: str, message: str) -> None:
        raise UserError(f"{path}: {key}: {message}")

    models = experiment.models
    classes = len(experiment.classes)
    for pair in experiment.all_pairs():
        if pair[0] == pair[1] or not all(0 <= index < classes for index in pair):
            fail("pairs", f"{list(pair)} is not two different class indices in 0..{classes - 1}")
    if len({frozenset(pair) for pair in experiment.all_pairs()}) < len(experiment.all_pairs()):
        fail("pairs", "a pair stands twice; pairs are unordered")
    for name, method in experiment.methods.items():
        if name == ORIGINAL_DATA:
            fail(f"methods.{name}", "this name is reserved for the reference row of the tables")
        for pair in method.pairs or ():
            if pair not in experiment.all_pairs():
                fail(f"methods.{name}.pairs", f"{list(pair)} is not one of the experiment's pairs")
            if method.pairs and method.pairs.count(pair) > 1:
                fail(f"methods.{name}.pairs", f"{list(pair)} stands twice")
        for needed in method.generators():
            if needed not in models.generators:
                known = ", ".join(models.generators) or "none"
                fail(f"methods.{name}", f"needs generator '{needed}'; defined: {known}")
            generator = models.generators[needed]
            if generator.per_classifier and generator.classifier != experiment.classifier:
                fail(
                    f"methods.{name}",
                    f"generator '{needed}' is trained for the classifier '{generator.classifier}', "
                    f"not for '{experiment.classifier}'",
                )
        if reason := method.conflict(models.generators):
            fail(f"methods.{name}", reason)
        if reason := unknown_class(experiment, name):
            fail(f"methods.{name}", reason)
        for needed in method.generators():
            if method.joint and models.generators[needed].per_pair:
                fail(
                    f"methods.{name}",
                    f"one training serves all pairs, but generator '{needed}' is trained per pair",
                )
        if reason := cannot_share(experiment, name):
            fail(f"methods.{name}.trained_as", reason)
        if reason := cannot_build(experiment, name):
            fail(f"methods.{name}", reason)
        if reason := method.unsuited(experiment.dataset, experiment.classifier_options):
            fail(f"methods.{name}", reason)
    for name in experiment.skipped:
        if name in experiment.methods:
            fail(f"skipped.{name}", "stands under 'methods', too")
    for metric in experiment.metrics:
        for needed in metric.oracles():
            if needed not in models.oracles:
                known = ", ".join(models.oracles) or "none"
                fail(f"metrics.{metric.kind}", f"needs oracle '{needed}'; defined: {known}")
            asked = models.oracles[needed].classifier
            if metric.asks_classes and (
                models.attribute_index(asked) != models.attribute_index(experiment.classifier)
            ):
                fail(
                    f"metrics.{metric.kind}",
                    f"oracle '{needed}' does not know the classes that '{experiment.classifier}' "
                    "tells; name a `classifier` of the same attribute in the oracle",
                )
    names = [column.name for metric in experiment.metrics for column in metric.columns()]
    for name in names:
        if names.count(name) > 1:
            fail("metrics", f"two metrics give the column '{name}'")


def unknown_class(experiment: Experiment, name: str) -> str | None:
    """Which class of a method's pairs one of its generators does not know; None if all."""
    models = experiment.models
    for needed in experiment.methods[name].generators():
        generator = models.generators[needed]
        known = generator.known_classes()
        if known is None:
            continue
        if models.attribute_index(generator.classifier) != models.attribute_index(
            experiment.classifier
        ):
            return (
                f"generator '{needed}' knows what '{generator.classifier}' tells, which is another "
                f"attribute than that of '{experiment.classifier}'"
            )
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
