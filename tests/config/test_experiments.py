"""What an experiment answers, and which parts of it fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from counterlens import config
from counterlens.config import Column, pair_name, parse_pair
from counterlens.errors import UserError
from counterlens.experiments import load_experiment

from .contents import Change, changed, error_of

# What an experiment answers


def test_directions_scopes_and_columns(write) -> None:
    write(changed(lambda e: e["methods"]["c3lt"].update(pairs=[[4, 9]])))
    e = load_experiment("tiny", "small")
    assert e.method_pairs("c3lt") == ((4, 9),)
    assert e.directions("c3lt") == ((4, 9), (9, 4))
    assert e.directions("pgd") == ((3, 8), (8, 3), (4, 9), (9, 4)) == e.directions("original-data")
    assert e.pair_of(9, 4) == (4, 9) == e.pair_of(4, 9)
    turned = e.methods["pgd"].model_copy(update={"pairs": ((4, 9), (3, 8))})
    e_turned = e.model_copy(update={"methods": {"pgd": turned}})
    assert e_turned.method_pairs("pgd") == ((3, 8), (4, 9))  # the experiment's order
    # an encoder is trained for the pairs of the methods that use it
    assert e.scopes("encoder") == ("4-9",)
    assert e.scopes("dcgan") == ("all-classes",)
    assert e.models.required_generators(("encoder",)) == ("dcgan", "encoder")
    assert e.models.scope("encoder", (4, 9)) == "4-9"
    assert e.models.scope("dcgan", (4, 9)) == "all-classes"
    assert list(e.columns()) == ["validity", "im1", "im2"]
    assert all(isinstance(column, Column) for column in e.columns().values())
    assert parse_pair(pair_name((4, 9))) == (4, 9)


def further(e: dict[str, Any]) -> None:
    """A pair of its own for one more method."""
    e["further_pairs"] = [[5, 2]]
    e["methods"]["far"] = {**e["methods"]["c3lt"], "pairs": [[5, 2]]}


def test_further_pairs_are_for_the_methods_that_name_them(write) -> None:
    write(changed(further))
    e = load_experiment("tiny", "small")
    assert e.directions("far") == ((5, 2), (2, 5))
    both = ((3, 8), (8, 3), (4, 9), (9, 4))
    assert e.directions("c3lt") == e.directions("pgd") == e.directions("original-data") == both
    assert e.pair_of(2, 5) == (5, 2) and e.all_pairs() == ((3, 8), (4, 9), (5, 2))
    assert e.scopes("encoder") == ("3-8", "4-9", "5-2")
    assert e.training_scopes("far") == {"5-2": ((5, 2),)}


def mirror(**options: Any) -> dict[str, Any]:
    """A tiny experiment with Mirror-CFE, trained once and used twice."""
    content = changed(lambda e: e.update(classifier={"kind": "gap-resnet"}))
    content["methods"] = {
        "first": {"kind": "mirror-cfe", **options},
        "end": {"kind": "mirror-cfe", "point": "reflection", "trained_as": "first", **options},
    }
    return content


def test_two_methods_may_share_a_training(write) -> None:
    write(mirror())
    e = load_experiment("tiny", "small")
    assert e.trained_methods() == ("first",)
    assert e.training_of("end", (4, 9)) == e.training_of("first", (4, 9)) == ("first", "4-9")
    assert e.training_scopes("first") == {"3-8": ((3, 8),), "4-9": ((4, 9),)}
    assert e.methods["first"].training() == e.methods["end"].training()
    assert "point" not in e.methods["end"].training()


def test_a_joint_training_serves_all_pairs(write) -> None:
    write(mirror(scope="all-pairs"))
    e = load_experiment("tiny", "small")
    assert e.training_scopes("first") == {"all-pairs": ((3, 8), (4, 9))}
    assert e.training_of("end", (3, 8)) == ("first", "all-pairs")


@pytest.mark.parametrize(
    ("images", "shard_size", "shards"), [(10, 10, 1), (11, 10, 2), (1, 10, 1), (30, 10, 3)]
)
def test_shards(images: int, shard_size: int, shards: int) -> None:
    evaluation = config.Evaluation(images=images, shard_size=shard_size)
    assert evaluation.shards == shards


# Methods that build on others


FILTERED = {"schedule": 20, "steps": 2}


def with_cecas(**changes: Any) -> Change:
    """The experiment with a diffusion model, ACE and a CECAS that uses its pre-explanations."""

    def change(e: dict[str, Any]) -> None:
        e["generators"]["ddpm"] = {"kind": "ddpm", "steps": 100}
        e["methods"]["ace"] = {"kind": "ace", **FILTERED, **changes.get("ace", {})}
        cecas = {"kind": "cecas", **FILTERED, "pre_explanation": "ace"}
        e["methods"]["cecas"] = {**cecas, **changes.get("cecas", {})}

    return change


def test_a_method_may_build_on_another(write) -> None:
    write(changed(with_cecas()))
    assert load_experiment("tiny", "published").methods["cecas"].builds_on() == "ace"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cecas": {"pre_explanation": "pgd"}}, "which is of kind 'pgd', not 'ace'"),
        ({"cecas": {"pre_explanation": "none"}}, "'none', which is no method; defined: "),
        ({"cecas": {"iterations": 8}}, "which attacks with other values of iterations"),
        ({"ace": {"images": 3}}, "which explains only 3 images"),
        ({"cecas": {"pre_explanation": "cecas"}}, "which builds on another method itself"),
        ({"ace": {"dilation": 4}}, "dilation is 4, must be odd"),
        ({"ace": {"ddpm": "vae"}}, "'vae' is no diffusion model"),
        ({"ace": {"steps": 30}}, "must not fall in this order"),
    ],
)
def test_a_method_that_cannot_build_on_another(write, changes: dict[str, Any], told: str) -> None:
    message = error_of(write, changed(with_cecas(**changes)))
    assert told in message and "methods." in message


def test_attributes_that_the_dataset_lacks(write) -> None:
    message = error_of(write, changed(lambda e: e["classifier"].update(attribute_weight=1)))
    assert "classifier.attribute_weight: 'digits' has no attributes" in message


PICTURES = {"kind": "image-folder", "folder": "pictures", "names": [str(k) for k in range(10)]}


@pytest.mark.parametrize(
    ("size", "generator", "told"),
    [
        ([12, 40], {"kind": "vae"}, "images of 12x40 are too small, it needs at least 16 pixels"),
        ([8, 8], {"kind": "ddpm"}, "images of 8x8 are too small"),
        (
            [256, 320],
            {"kind": "biggan", "folder": "f", "imagenet": list(range(10))},
            "colour images of 128x128, 256x256 or 512x512; those of 'pictures-256x320' are 256x320",
        ),
        (
            [28, 32],
            {"kind": "guided-diffusion", "file": "f", "sha256": "0" * 64},
            "images of 28x32: the sides must be multiples of 32",
        ),
    ],
)
def test_images_that_a_generator_cannot_make(
    write, size: list[int], generator: dict[str, Any], told: str
) -> None:
    def change(e: dict[str, Any]) -> None:
        e["dataset"] = {**PICTURES, "size": size}
        e["classifier"] = {"kind": "gap-resnet"}
        e["generators"] = {"made": generator}
        e["methods"] = {"pgd": e["methods"]["pgd"]}

    message = error_of(write, changed(change))
    assert message.startswith("generators.made: ") and told in message


def test_images_that_a_classifier_cannot_see(write) -> None:
    message = error_of(write, changed(lambda e: e.update(dataset={**PICTURES, "size": [28, 15]})))
    assert message.startswith("classifier: images of 28x15 are too small")


def test_one_direction_of_each_pair(write) -> None:
    write(changed(lambda e: e["evaluation"].update(directions="forward")))
    e = load_experiment("tiny", "published")
    assert e.directions("pgd") == e.method_pairs("pgd")
    assert e.pair_directions((4, 9)) == ((4, 9),)


def test_unsuited_methods_are_skipped_with_their_reason(copied_project: Path) -> None:
    path = copied_project / "config/experiments/digits.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["classifier"] = "lenet"
    for methods in (content["methods"], content["small"]["methods"]):
        for name in ("c3lt", "c3lt-n3"):  # their encoder is the other classifier's
            del methods[name]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"methods\.mirror-cfe: .* global average pooling"):
        load_experiment("digits", "small")
    path.write_text(yaml.safe_dump({**content, "unsuited": "skip"}), encoding="utf-8")
    e = load_experiment("digits", "small")
    assert "mirror-cfe" not in e.methods and "pgd" in e.methods
    assert "global average pooling" in e.skipped["mirror-cfe"]
    with_both = {**content, "unsuited": "skip", "skipped": {"pgd": "too slow"}}
    path.write_text(yaml.safe_dump(with_both), encoding="utf-8")
    with pytest.raises(UserError, match=r"skipped\.pgd: stands under 'methods', too"):
        load_experiment("digits", "small")


@pytest.mark.parametrize(
    ("generator", "method", "told"),
    [
        (
            {"kind": "vae"},
            {"kind": "steex"},
            "'made' has no regions; name a generator of kind sean",
        ),
        ({"kind": "sean"}, {"kind": "steex", "regions": [8]}, "regions: 8, but 'made' has 0..7"),
        (
            {"kind": "sean", "segmentation": "strokes"},
            {"kind": "steex", "regions": [0, 3]},
            "regions: 3, but 'made' has 0..2",
        ),
        ({"kind": "sean"}, {"kind": "dive"}, "'made' decodes no latents"),
        (
            {"kind": "beta-tcvae", "latent_dim": 8},
            {"kind": "dive", "explanations": 8},
            "8 parts of a code cannot be made of the 8 dimensions of 'made'",
        ),
    ],
)
def test_generators_that_do_not_serve(
    write, generator: dict[str, Any], method: dict[str, Any], told: str
) -> None:
    def change(e: dict[str, Any]) -> None:
        e["generators"]["made"] = generator
        e["methods"]["made"] = {**method, "generator": "made"}

    message = error_of(write, changed(change))
    assert message.startswith("methods.made: ") and told in message
