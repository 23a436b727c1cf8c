"""Classifiers that tell an attribute of their dataset, and what goes with them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from counterlens.errors import UserError
from counterlens.experiments import load_experiment, load_models

from .contents import FACES, error_of, of_faces


def test_a_generator_that_one_classifier_judged_may_serve_another(write) -> None:
    """Unlike C3LT's encoder, which learns of its classifier."""
    write(FACES, "shared", "models")
    for classifier in ("smile", "smile-again", "age"):
        write(of_faces(classifier, "dive"))
        e = load_experiment("tiny", "small")
        assert e.generators["beta-tcvae"].classifier == "smile"


@pytest.mark.parametrize(
    ("classifier", "told"),
    [
        (
            {"kind": "lenet"},
            "classifiers.smile: needs an `attribute`: 'celeba-subset' has no classes of its own",
        ),
        (
            {"kind": "lenet", "attribute": "smiling"},
            "classifiers.smile.attribute: 'smiling' is unknown; known: 5_o_Clock_Shadow, Arched_E",
        ),
        (
            {"kind": "lenet", "attribute": "Smiling", "left_out": [2]},
            "classifiers.smile.left_out: 2 is no class index in 0..1",
        ),
    ],
)
def test_a_classifier_of_faces_names_an_attribute(
    classifier: dict[str, Any], told: str, write
) -> None:
    content = copy.deepcopy(FACES)
    content["classifiers"]["smile"] = classifier
    path = write(content, "shared", "models")
    with pytest.raises(UserError) as caught:
        load_models("shared", "small")
    assert str(caught.value).startswith(f"{path}: {told}")


def test_a_missing_attribute_of_the_only_classifier(write) -> None:
    content = {**of_faces("", "pgd"), "dataset": "celeba-subset", "seed": 1}
    content |= {"methods": {"pgd": {"epsilon": 1}}, "classifier": {"kind": "lenet"}}
    del content["models"]
    assert error_of(write, content).startswith("classifier: needs an `attribute`: 'celeba-subset'")
    content["classifier"]["attribute"] = "Yuong"
    assert error_of(write, content).startswith("classifier.attribute: 'Yuong' is unknown; known: ")


def test_the_classes_are_what_the_classifier_tells(write) -> None:
    write(FACES, "shared", "models")
    models = load_models("shared", "small")
    assert models.class_names("smile") == models.class_names("smile-again")
    assert models.class_names("age") == ("not young", "young")
    attributes = models.dataset.attributes
    assert models.attribute_index("age") == attributes.index("Young")
    assert models.attribute_index(None) is None
    write(of_faces("age", "dive"))
    e = load_experiment("tiny", "small")
    assert e.classes == ("not young", "young") and e.dataset.classes == ()
    write({**of_faces("age", "dive"), "pairs": [[0, 2]]})
    with pytest.raises(
        UserError, match=r"pairs: \[0, 2\] is not two different class indices in 0\.\.1"
    ):
        load_experiment("tiny", "small")


def test_a_class_conditional_generator_of_another_attribute(write) -> None:
    write(FACES, "shared", "models")
    message = error_of(write, of_faces("age", "eced"))
    assert message == (
        "methods.eced: generator 'latent-diffusion' knows what 'smile' tells, which is another "
        "attribute than that of 'age'"
    )
    write(of_faces("smile-again", "eced"))  # another network, the same classes
    assert "eced" in load_experiment("tiny", "small").methods


def test_an_oracle_that_is_asked_about_other_classes(write) -> None:
    write(FACES, "shared", "models")
    validity = {"kind": "oracle-validity", "classifier": "judge"}
    message = error_of(write, of_faces("age", "dive", metrics=(validity,)))
    assert message.startswith("metrics.oracle-validity: oracle 'judge' does not know the classes ")
    message = error_of(write, of_faces("smile", "dive", metrics=("im",)))
    assert message.startswith("metrics.im: oracle 'autoencoders' does not know the classes that")
    # the features of a network that tells another attribute are features as well
    features = {"kind": "fid", "extractor": "judge"}
    write(of_faces("age", "dive", metrics=(features,)))
    assert list(load_experiment("tiny", "small").oracles) == ["judge"]
    write(of_faces("smile-again", "dive", metrics=(validity,)))
    assert list(load_experiment("tiny", "small").oracles) == ["judge"]
