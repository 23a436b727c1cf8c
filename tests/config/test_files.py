"""Reading YAML files: what cannot be read, `small` and `extends`."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from counterlens import config
from counterlens.config import merge
from counterlens.errors import UserError
from counterlens.experiments import load_experiment

from .contents import TINY, error_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: tiny\nseed: 1\nseed: 2\n", "not valid YAML: key 'seed' stands twice"),
        (
            "name: tiny\nmethods:\n  pgd: {kind: pgd, epsilon: 1, epsilon: 2}\n",
            "not valid YAML: key 'epsilon' stands twice in the mapping at line 3",
        ),
        ("name: [tiny\n", "not valid YAML: "),
        ("name: !!python/object/apply:os.getcwd []\n", "not valid YAML: "),
        ("- tiny\n", "a mapping of keys is expected"),
        ("", "a mapping of keys is expected"),
    ],
)
def test_a_file_that_cannot_be_read(text: str, expected: str, write) -> None:
    assert expected in error_of(write, text)


def test_a_file_that_is_not_utf8(write) -> None:
    path = write(TINY)
    path.write_bytes(b"description: caf\xe9\n")
    with pytest.raises(UserError, match=r"tiny\.yaml: not valid YAML: 'utf-8' codec"):
        load_experiment("tiny", "small")


def test_merge_keys_are_no_duplicates(write) -> None:
    """`<<` of an anchor that itself merges, used above and below the anchor's own level."""
    text = yaml.safe_dump({key: value for key, value in TINY.items() if key != "methods"})
    text += """
methods:
  first: &first {kind: pgd, epsilon: 1/255, steps: 1}
  second: &second {<<: *first, steps: 2}
  third: {<<: *second, steps: 3}
classifier: {kind: lenet}
small:
  classifier: &deep {kind: lenet, epochs: 1}
"""
    text = text.replace("classifier:\n  epochs: 2\n  kind: lenet\n", "")
    write(text)
    e = load_experiment("tiny", "small")
    assert [m.model_dump()["steps"] for m in e.methods.values()] == [1, 2, 3]
    Path("nested.yaml").write_text(
        "deep: {one: &one {a: 1}, two: &two {<<: *one, a: 2}}\nflat: {<<: *two, a: 3}\n"
    )
    assert config.read_yaml(Path("nested.yaml")) == {
        "deep": {"one": {"a": 1}, "two": {"a": 2}},
        "flat": {"a": 3},
    }


def test_a_missing_experiment_names_the_known_ones(write) -> None:
    write(TINY)
    with pytest.raises(UserError) as caught:
        load_experiment("tyni", "small")
    assert str(caught.value) == "config/experiments/tyni.yaml: no such file; known: tiny"


def test_small_overlays_and_null_removes(write) -> None:
    small = {
        "classifier": {"epochs": 1},
        "generators": {"vae": None},
        "methods": {"pgd": None, "c3lt": {"epochs": 3}},
        "pairs": [[4, 9]],
    }
    write({**TINY, "small": small})
    published, reduced = (load_experiment("tiny", scale) for scale in ("published", "small"))
    assert (published.scale, reduced.scale) == ("published", "small")
    assert (published.classifier_options.epochs, reduced.classifier_options.epochs) == (2, 1)
    assert published.pairs == ((3, 8), (4, 9)) and reduced.pairs == ((4, 9),)
    assert set(published.methods) == {"c3lt", "pgd"} and set(reduced.methods) == {"c3lt"}
    assert set(published.models.generators) == {"dcgan", "encoder", "vae"}
    assert set(reduced.models.generators) == {"dcgan", "encoder"}
    assert reduced.methods["c3lt"].model_dump() == {
        **published.methods["c3lt"].model_dump(),
        "epochs": 3,
    }


def test_extends_inherits_and_overrides(write) -> None:
    write({**TINY, "small": {"classifier": {"epochs": 1}}})
    write(
        {
            "extends": "tiny",
            "name": "other",
            "seed": 2,
            "methods": {"pgd": {"epsilon": "72/255"}, "c3lt": None},
            "small": {"seed": 3},
        },
        "other",
    )
    published, small = (load_experiment("other", scale) for scale in ("published", "small"))
    assert (published.name, published.seed, small.seed) == ("other", 2, 3)
    assert (published.models.name, published.models.seed, small.models.seed) == ("other", 2, 3)
    assert (published.classifier_options.epochs, small.classifier_options.epochs) == (2, 1)
    assert set(published.methods) == {"pgd"}
    assert published.methods["pgd"].model_dump()["epsilon"] == 72 / 255
    assert load_experiment("tiny", "published").seed == 1  # the parent is as it was


def test_a_child_must_name_itself(write) -> None:
    write(TINY)
    write({"extends": "tiny", "seed": 2}, "other")
    with pytest.raises(UserError, match=r"other\.yaml: name: must be 'other'"):
        load_experiment("other", "small")


def test_extends_in_a_circle(write) -> None:
    write({"name": "a", "extends": "b"}, "a")
    write({"name": "b", "extends": "a"}, "b")
    with pytest.raises(UserError, match=r"config/experiments/b\.yaml: extends: 'a' extends this"):
        load_experiment("a", "small")
    write({"name": "c", "extends": "c"}, "c")
    with pytest.raises(UserError, match=r"config/experiments/c\.yaml: extends"):
        load_experiment("c", "small")
    write({"name": "d", "extends": "absent"}, "d")
    with pytest.raises(UserError, match=r"config/experiments/absent\.yaml: no such file"):
        load_experiment("d", "small")


def test_merge_leaves_its_arguments_alone() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1], "e": 5}
    override = {"a": {"b": 3, "c": None}, "d": [2], "e": None, "f": {"g": 1}}
    before = copy.deepcopy((base, override))
    assert merge(base, override) == {"a": {"b": 3}, "d": [2], "f": {"g": 1}}
    assert (base, override) == before
