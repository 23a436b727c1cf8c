"""Models of a dataset: in files of their own, in an experiment, and what shapes a training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from counterlens.errors import UserError
from counterlens.experiments import load_experiment, load_models

from .contents import NAMING, SHARED, TINY, Change, changed, error_of


def test_an_experiment_may_name_the_models_of_its_dataset(write) -> None:
    write(SHARED, "shared", "models")
    write(NAMING)
    e = load_experiment("tiny", "small")
    assert e.models == load_models("shared", "small") and e.models.name == "shared"
    assert (e.scale, e.seed, e.dataset.kind) == ("small", 7, "digits")
    assert e.classes == tuple("0123456789")
    assert (e.classifier, e.classifier_options.epochs) == ("lenet", 2)
    # of the models it has what its methods and metrics use
    assert list(e.generators) == ["dcgan", "encoder"] and list(e.oracles) == ["autoencoders"]
    assert len(e.models.generators) == 4 and len(e.models.oracles) == 2
    write({**NAMING, "classifier": "second", "methods": {"pgd": {"epsilon": 1}}})
    other = load_experiment("tiny", "small")
    assert other.models == e.models and other.classifier_options.kind == "gap-resnet"
    assert list(other.generators) == []


def test_kinds_are_the_keys_unless_they_are_given(write) -> None:
    write(SHARED, "shared", "models")
    write({**NAMING, "metrics": ["validity", "proximity", {"kind": "im"}]})
    e = load_experiment("tiny", "small")
    kinds = {
        section: {name: options.kind for name, options in getattr(e.models, section).items()}
        for section in ("classifiers", "generators", "oracles")
    }
    assert kinds == {
        "classifiers": {"lenet": "lenet", "second": "gap-resnet"},
        "generators": {
            "dcgan": "dcgan",
            "encoder": "dcgan-encoder",
            "vae": "vae",
            "cem-autoencoder": "cem-autoencoder",
        },
        "oracles": {"autoencoders": "autoencoders", "judge": "feature-extractor"},
    }
    assert {name: m.kind for name, m in e.methods.items()} == {"c3lt": "c3lt", "pgd": "pgd"}
    assert [metric.kind for metric in e.metrics] == ["validity", "proximity", "im"]
    assert list(e.columns()) == ["validity", "proximity", "proximity_pm1", "im1", "im2"]


OF_MODELS: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda m: m.update(sede=3), "sede: unknown key; allowed: classifiers, dat"),
    "a key of experiments": (
        lambda m: m.update(pairs=[[4, 9]]),
        "pairs: unknown key; allowed: classifiers, dataset, generators, oracles, seed",
    ),
    "a name of its own": (lambda m: m.update(name="other"), "name: unknown key; allowed: "),
    "a scale": (lambda m: m.update(scale="published"), "scale: unknown key; allowed: "),
    "no seed": (lambda m: m.pop("seed"), "seed: key is missing"),
    "no classifiers": (lambda m: m.pop("classifiers"), "classifiers: key is missing"),
    "no classifier": (lambda m: m.update(classifiers={}), "classifiers: Dictionary should have"),
    "out of range": (
        lambda m: m["classifiers"]["lenet"].update(epochs=0),
        "classifiers.lenet.epochs: Input should be greater than 0",
    ),
    "a generator that must name one of several classifiers": (
        lambda m: m["generators"]["vae"].pop("classifier"),
        "generators.vae.classifier: key is missing; name one of lenet, second",
    ),
    "an oracle that must name one of several classifiers": (
        lambda m: m["oracles"]["judge"].pop("classifier"),
        "oracles.judge.classifier: key is missing; name one of lenet, second",
    ),
    "a generator's classifier that is none": (
        lambda m: m["generators"]["vae"].update(classifier="third"),
        "generators.vae.classifier: 'third'; defined: lenet, second",
    ),
    "an oracle's classifier that is none": (
        lambda m: m["oracles"]["autoencoders"].update(classifier="third"),
        "oracles.autoencoders.classifier: 'third'; defined: lenet, second",
    ),
    "a generator that requires one that is none": (
        lambda m: m["generators"].pop("dcgan"),
        "generators.encoder: needs generator 'dcgan'; defined: encoder, vae, cem-autoencoder",
    ),
    "an attribute of data without any": (
        lambda m: m["classifiers"]["second"].update(attribute="Smiling"),
        "classifiers.second.attribute: 'Smiling' is unknown; known: none",
    ),
    "a class left out that is none": (
        lambda m: m["classifiers"]["second"].update(left_out=[10]),
        "classifiers.second.left_out: 10 is no class index in 0..9",
    ),
    "an id that is no path": (
        lambda m: m["oracles"].update({"A/b": {"kind": "autoencoders"}}),
        "oracles.A/b",
    ),
}


@pytest.mark.parametrize("mistake", OF_MODELS)
def test_a_mistake_in_a_models_file_is_told_in_one_line(mistake: str, write) -> None:
    """The same whether the models are asked for, or an experiment that names them."""
    change, told = OF_MODELS[mistake]
    content = copy.deepcopy(SHARED)
    change(content)
    path = write(content, "shared", "models")
    write(NAMING)
    for load, name in ((load_models, "shared"), (load_experiment, "tiny")):
        with pytest.raises(UserError) as caught:
            load(name, "small")
        message = str(caught.value)
        assert message.startswith(f"{path}: {told}") and "\n" not in message


OF_NAMING: dict[str, tuple[Change, str]] = {
    "unknown models": (
        lambda e: e.update(models="shard"),
        "models: 'shard' is no file of config/models; known: shared",
    ),
    "models that are no name": (
        lambda e: e.update(models={"dataset": "digits"}),
        "models: '{'dataset': 'digits'}' is no file of config/models; known: shared",
    ),
    "unknown classifier": (
        lambda e: e.update(classifier="third"),
        "classifier: 'third' is unknown; known: lenet, second",
    ),
    "no classifier": (lambda e: e.pop("classifier"), "classifier: key is missing"),
    "a classifier of its own": (
        lambda e: e.update(classifier={"kind": "lenet"}),
        "classifier: Input should be a valid string",
    ),
    "a seed of its own": (
        lambda e: e.update(seed=3),
        "seed: stands in config/models/shared.yaml, which `models` names; leave it out",
    ),
    "an encoder that is trained for another classifier": (
        lambda e: e.update(classifier="second"),
        "methods.c3lt: generator 'encoder' is trained for the classifier 'lenet', not for 'second'",
    ),
    "unknown generator": (
        lambda e: e["methods"]["c3lt"].update(generator="gan"),
        "methods.c3lt: needs generator 'gan'; defined: dcgan, encoder, vae, cem-autoencoder",
    ),
    "unknown oracle": (
        lambda e: e["metrics"].append({"kind": "fid", "extractor": "inception"}),
        "metrics.fid: needs oracle 'inception'; defined: autoencoders, judge",
    ),
}
OF_NAMING |= {
    f"{key} beside the models": (
        lambda e, key=key: e.update({key: SHARED[key]}),
        f"{key}: stands in config/models/shared.yaml, which `models` names; leave it out",
    )
    for key in ("dataset", "classifiers", "generators", "oracles")
}


@pytest.mark.parametrize("mistake", OF_NAMING)
def test_a_mistake_of_an_experiment_that_names_models(mistake: str, write) -> None:
    change, told = OF_NAMING[mistake]
    write(SHARED, "shared", "models")
    content = copy.deepcopy(NAMING)
    change(content)
    assert error_of(write, content).startswith(told)


def test_models_that_are_not_there(write) -> None:
    write({**NAMING, "models": "mnist"})
    with pytest.raises(UserError, match=r"models: 'mnist' is no file of config/models; known: no"):
        load_experiment("tiny", "small")
    write(SHARED, "shared", "models")
    with pytest.raises(UserError, match=r"config/models/mnist\.yaml: no such file; known: shared$"):
        load_models("mnist", "small")


# Inheritance between models files


def test_models_may_extend_others(write) -> None:
    small = {"classifiers": {"lenet": {"epochs": 1}}, "generators": {"vae": {"width": 2}}}
    write({**SHARED, "small": small}, "shared", "models")
    child = {
        "extends": "shared",
        "seed": 8,
        "generators": {"vae": None, "dcgan": {"width": 6}},
        "small": {"generators": {"vae": None}},
    }
    write(child, "child", "models")
    published, reduced = (load_models("child", scale) for scale in ("published", "small"))
    for models in (published, reduced):
        assert (models.name, models.seed) == ("child", 8)
        assert set(models.generators) == {"dcgan", "encoder", "cem-autoencoder"}
        assert models.generators["dcgan"].model_dump()["width"] == 6
    assert published.classifiers["lenet"].epochs == 2 and reduced.classifiers["lenet"].epochs == 1
    parent = load_models("shared", "small")
    assert (parent.name, parent.seed) == ("shared", 7)
    assert parent.generators["vae"].model_dump()["width"] == 2


def test_small_null_takes_back_the_whole_reduction(write) -> None:
    write({**SHARED, "small": {"seed": 9}}, "shared", "models")
    write({"extends": "shared", "small": None}, "child", "models")
    assert load_models("shared", "small").seed == 9
    child = load_models("child", "small")
    assert (child.seed, child.scale) == (7, "small")


def test_models_in_a_circle(write) -> None:
    write({"extends": "b"}, "a", "models")
    write({"extends": "a"}, "b", "models")
    with pytest.raises(UserError, match=r"config/models/b\.yaml: extends: 'a' extends this"):
        load_models("a", "small")


# Models that an experiment holds itself


def test_the_models_of_an_experiment_have_its_name(write) -> None:
    write(TINY)
    e = load_experiment("tiny", "small")
    assert e.models.name == "tiny" and e.models == load_models("tiny", "small")
    # the only classifier is known by its kind, and all that ask one ask it
    assert e.classifier == "lenet" and list(e.models.classifiers) == ["lenet"]
    assert {g.classifier for g in e.models.generators.values()} == {"lenet"}
    assert e.models.oracles["autoencoders"].classifier is None  # it asks none


@pytest.mark.parametrize(
    ("file", "name"), [("my_net.py", "my-net"), ("My Net2.py", "my-net2"), ("_.py", "classifier")]
)
def test_the_only_classifier_may_lie_in_a_file_of_the_user_s(
    file: str, name: str, write, tmp_path: Path
) -> None:
    options = (
        "from counterlens.config import ClassifierOptions\nclass Options(ClassifierOptions): ...\n"
    )
    (tmp_path / file).write_text(options)
    write(changed(lambda e: e.update(classifier={"kind": str(tmp_path / file)})))
    e = load_experiment("tiny", "small")
    assert e.classifier == name and e.classifier_options.kind == str(tmp_path / file)


def several(e: dict[str, Any]) -> None:
    """Two classifiers in the experiment itself."""
    e["classifiers"] = {"lenet": {"epochs": 3}, "second": {"kind": "gap-resnet"}}
    e["classifier"] = "second"
    for generator in e["generators"].values():
        generator["classifier"] = "lenet"
    e["methods"] = {"pgd": {"epsilon": 1}}


def test_an_experiment_may_hold_several_classifiers(write) -> None:
    write(changed(several))
    e = load_experiment("tiny", "small")
    assert list(e.models.classifiers) == ["lenet", "second"]
    assert e.classifier == "second" and e.classifier_options.kind == "gap-resnet"
    assert e.models.classifiers["lenet"].epochs == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda e: e.update(classifier={"kind": "lenet"}),
            "classifier: must be one of the names under `classifiers`",
        ),
        (lambda e: e.update(classifier="third"), "classifier: 'third' is unknown; known: lenet, s"),
        (lambda e: e.pop("classifier"), "classifier: key is missing"),
        (
            lambda e: e.pop("classifiers"),
            "classifier: 'second' is the name of a model; name its file under `models`, or give",
        ),
        (
            lambda e: e["generators"]["vae"].pop("classifier"),
            "generators.vae.classifier: key is missing; name one of lenet, second",
        ),
        (
            lambda e: e["classifiers"]["lenet"].update(epochs=0),
            "classifiers.lenet.epochs: Input should be greater than 0",
        ),
    ],
)
def test_mistakes_with_several_classifiers(change: Change, told: str, write) -> None:
    content = changed(several)
    change(content)
    assert error_of(write, content).startswith(told)


def test_models_of_an_experiment_cannot_have_the_name_of_a_file(write) -> None:
    """Their trainings would lie in the same folders."""
    write(SHARED, "tiny", "models")
    assert error_of(write, TINY) == (
        "name: config/models/tiny.yaml has the same name as the models that this file holds "
        "itself; name that file under `models`, or choose another name"
    )
    write({**NAMING, "models": "tiny"})
    assert load_experiment("tiny", "small").models.seed == 7


# What shapes a training


def test_the_settings_of_a_model_are_its_own_and_its_classifier_s(write) -> None:
    write(SHARED, "shared", "models")
    models = load_models("shared", "small")

    def settings(**changes: Any) -> dict[tuple[str, str], Any]:
        """Of every model, after options of some were changed."""
        content = copy.deepcopy(SHARED)
        for name, options in changes.items():
            for section in ("classifiers", "generators", "oracles"):
                content[section].get(name, {}).update(options)
        write(content, "shared", "models")
        those = load_models("shared", "small")
        return {
            (section, name): those.settings(section, name)
            for section in ("classifiers", "generators", "oracles")
            for name in getattr(those, section)
        }

    before = settings()
    assert before["generators", "vae"] == {
        "seed": 7,
        "dataset": models.dataset.model_dump(mode="json"),
        "generators": {"vae": models.generators["vae"].model_dump(mode="json")},
        "classifiers": {"second": models.classifiers["second"].model_dump(mode="json")},
    }

    def touched(**changes: Any) -> set[str]:
        after = settings(**changes)
        return {name for (section, name), value in after.items() if value != before[section, name]}

    assert touched(lenet={"epochs": 9}) == {"lenet", "dcgan", "encoder", "judge"}
    assert touched(second={"epochs": 9}) == {"second", "vae"}
    assert touched(vae={"epochs": 9}) == {"vae"}
    assert touched(autoencoders={"class_epochs": 9}) == {"autoencoders"}
