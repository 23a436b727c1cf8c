"""Every mistake in a YAML file is one line that names the file and the key; what a file answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from counterlens import config
from counterlens.config import Column, merge, pair_name, parse_pair
from counterlens.errors import UserError
from counterlens.experiments import load_experiment

TINY: dict[str, Any] = {
    "name": "tiny",
    "dataset": "digits",
    "seed": 1,
    "pairs": [[3, 8], [4, 9]],
    "classifier": {"kind": "lenet", "epochs": 2},
    "generators": {
        "dcgan": {"kind": "dcgan", "width": 4},
        "encoder": {"kind": "dcgan-encoder", "generator": "dcgan", "width": 4},
        "vae": {"kind": "vae", "width": 4},
    },
    "oracles": {"autoencoders": {"kind": "autoencoders"}},
    "methods": {
        "c3lt": {"kind": "c3lt", "generator": "dcgan", "encoder": "encoder"},
        "pgd": {"kind": "pgd", "epsilon": "64/255"},
    },
    "metrics": [{"kind": "validity"}, {"kind": "im", "autoencoders": "autoencoders"}],
    "evaluation": {"images": 10},
}

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write an experiment file (a mapping or YAML text) in an empty project."""
    monkeypatch.chdir(tmp_path)

    def save(content: dict[str, Any] | str, name: str = "tiny") -> Path:
        path = Path("config/experiments") / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        path.write_text(text, encoding="utf-8")
        return path

    return save


def changed(change: Change) -> dict[str, Any]:
    content = copy.deepcopy(TINY)
    change(content)
    return content


def error_of(write: Callable[..., Path], content: dict[str, Any] | str) -> str:
    """The one line that an experiment file is refused with, after the file's name."""
    path = write(content)
    with pytest.raises(UserError) as caught:
        load_experiment("tiny", "small")
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


MISTAKES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "unknown key": (
        lambda e: e.update(sede=3),
        ("sede: unknown key", "allowed: ", "seed"),
    ),
    "unknown key of a method": (
        lambda e: e["methods"]["pgd"].update(step=3),
        ("methods.pgd.step: unknown key", "allowed: ", "step_size, steps"),
    ),
    "unknown key of a list entry": (
        lambda e: e["metrics"][1].update(step=3),
        ("metrics.1.step: unknown key", "allowed: ", "autoencoders"),
    ),
    "unknown key of a nested mapping": (
        lambda e: e["evaluation"].update(image=3),
        ("evaluation.image: unknown key; allowed: animations, batch_size, directions, errors",),
    ),
    "wrong type": (
        lambda e: e.update(seed="many"),
        ("seed: ", "valid integer", "'many'"),
    ),
    "out of range": (
        lambda e: e["classifier"].update(epochs=0),
        ("classifier.epochs: ", "greater than 0", "(found 0)"),
    ),
    "not one of the choices": (
        lambda e: e["classifier"].update(precision="fp16"),
        ("classifier.precision: ", "'fp32' or 'bf16'", "'fp16'"),
    ),
    "missing key": (lambda e: e.pop("seed"), ("seed: key is missing",)),
    "missing section": (lambda e: e.pop("dataset"), ("dataset: key is missing",)),
    "missing key of a method": (
        lambda e: e["methods"]["c3lt"].pop("encoder"),
        ("methods.c3lt.encoder: key is missing",),
    ),
    "no method": (lambda e: e.update(methods={}), ("methods: ", "at least 1")),
    "no pair": (lambda e: e.update(pairs=[]), ("pairs: ", "at least 1")),
    "other name than the file's": (lambda e: e.update(name="huge"), ("name: must be 'tiny'",)),
    "id that is no path": (
        lambda e: e["methods"].update({"A/b": e["methods"]["pgd"]}),
        ("methods.A/b", "pattern"),
    ),
    "pair of a class with itself": (
        lambda e: e.update(pairs=[[4, 9], [3, 3]]),
        ("pairs: [3, 3] is not two different class indices in 0..9",),
    ),
    "pair of an absent class": (
        lambda e: e.update(pairs=[[4, 10]]),
        ("pairs: [4, 10] is not two different class indices in 0..9",),
    ),
    "further pair twice": (
        lambda e: e.update(further_pairs=[[9, 4]]),
        ("pairs: a pair stands twice",),
    ),
    "class left out that is none": (
        lambda e: e["classifier"].update(left_out=[9, 10]),
        ("classifier.left_out: 10 is no class index in 0..9",),
    ),
    "encoder left out, latents of none": (
        lambda e: e["methods"]["c3lt"].update(encoder=None, generator="encoder"),
        ("methods.c3lt: 'encoder' decodes no latents",),
    ),
    "unknown key of a group of options": (
        lambda e: e["methods"]["c3lt"].update(inversion={"step": 3}),
        ("methods.c3lt.inversion.step: unknown key; allowed: batch_size, feature_weight, lr",),
    ),
    "pair of three": (lambda e: e.update(pairs=[[3, 4, 5]]), ("pairs.0",)),
    "pair twice": (
        lambda e: e.update(pairs=[[4, 9], [9, 4]]),
        ("pairs: a pair stands twice",),
    ),
    "method pair that is not the experiment's": (
        lambda e: e["methods"]["pgd"].update(pairs=[[5, 6]]),
        ("methods.pgd.pairs: [5, 6] is not one of the experiment's pairs",),
    ),
    "unknown generator of a method": (
        lambda e: e["methods"]["c3lt"].update(encoder="absent"),
        ("methods.c3lt: needs generator 'absent'", "defined: dcgan, encoder, vae"),
    ),
    "unknown generator of a generator": (
        lambda e: e["generators"]["encoder"].update(generator="absent"),
        ("generators.encoder: needs generator 'absent'", "defined: dcgan, encoder, vae"),
    ),
    "generator that needs itself": (
        lambda e: e["generators"]["encoder"].update(generator="encoder"),
        ("generators.encoder: needs itself",),
    ),
    "generators in a circle": (
        lambda e: e["generators"].update(
            encoder={"kind": "dcgan-encoder", "generator": "other"},
            other={"kind": "dcgan-encoder", "generator": "encoder"},
        ),
        ("generators.encoder: needs itself, by way of",),
    ),
    "method pair twice": (
        lambda e: e["methods"]["pgd"].update(pairs=[[4, 9], [4, 9]]),
        ("methods.pgd.pairs: [4, 9] stands twice",),
    ),
    "infinite number": (
        lambda e: e["classifier"].update(lr=float("inf")),
        ("classifier.lr: ", "finite", "(found inf)"),
    ),
    "not a number": (
        lambda e: e["generators"]["dcgan"].update(beta1=float("nan")),
        ("generators.dcgan.beta1: ", "finite", "(found nan)"),
    ),
    "unknown oracle": (
        lambda e: e["metrics"][1].update(autoencoders="absent"),
        ("metrics.im: needs oracle 'absent'", "defined: autoencoders"),
    ),
    "unknown kind of classifier": (
        lambda e: e["classifier"].update(kind="resnet"),
        ("classifier.kind: 'resnet' is unknown; allowed: ", "gap-resnet", "lenet", "path/to"),
    ),
    "unknown kind of method": (
        lambda e: e["methods"].update(mine={"kind": "dream"}),
        ("methods.mine.kind: 'dream' is unknown; allowed: ", "c3lt", "pgd"),
    ),
    "a stage is no kind of method": (
        lambda e: e["methods"].update(mine={"kind": "explain"}),
        ("methods.mine.kind: 'explain' is unknown",),
    ),
    "unknown dataset": (
        lambda e: e.update(dataset="cats"),
        ("dataset.kind: 'cats' is unknown; allowed: ", "digits", "mnist"),
    ),
    "plugin file that is not there": (
        lambda e: e["methods"].update(mine={"kind": "mine/dream.py"}),
        ("methods.mine.kind: 'mine/dream.py': no such file",),
    ),
    "section that is no mapping": (
        lambda e: e.update(generators=["dcgan"]),
        ("generators: a mapping of names is expected",),
    ),
    "metrics that are no list": (
        lambda e: e.update(metrics={"kind": "validity"}),
        ("metrics: a list is expected",),
    ),
    "entry without kind": (
        lambda e: e["methods"].update(mine={"epsilon": 1}),
        ("methods.mine: a mapping with a 'kind' is expected",),
    ),
    "adversarial loss without discriminator": (
        lambda e: e["methods"]["c3lt"].update(generator="vae", encoder="vae", gamma=0.001),
        ("methods.c3lt: gamma: 0.001 needs a discriminator, 'vae' has none; use 0",),
    ),
    "reserved method": (
        lambda e: e["methods"].update({"original-data": e["methods"]["pgd"]}),
        ("methods.original-data: this name is reserved",),
    ),
    "class that a generator does not know": (
        lambda e: (
            e["generators"].update(latent={"kind": "latent-diffusion", "classes": [3, 4, 8]}),
            e["methods"].update(eced={"kind": "eced", "generator": "latent"}),
        ),
        ("methods.eced: generator 'latent' knows no class 9; add it to its `classes`",),
    ),
    "column twice": (
        lambda e: e["metrics"].append({"kind": "validity"}),
        ("metrics: two metrics give the column 'validity'",),
    ),
    "zero denominator": (
        lambda e: e["methods"]["pgd"].update(epsilon="64/0"),
        ("methods.pgd.epsilon: ", "'64/0'"),
    ),
    "ratio of words": (
        lambda e: e["methods"]["pgd"].update(epsilon="much/little"),
        ("methods.pgd.epsilon: ", "'much/little'"),
    ),
    "training of a method that is not there": (
        lambda e: e["methods"].update(more={**e["methods"]["c3lt"], "trained_as": "c4lt"}),
        ("methods.more.trained_as: 'c4lt' has no training of its own", "those that have: c3lt"),
    ),
    "training of a method that has none": (
        lambda e: e["methods"].update(more={**e["methods"]["c3lt"], "trained_as": "pgd"}),
        ("methods.more.trained_as: 'pgd' has no training of its own",),
    ),
    "training with other options": (
        lambda e: e["methods"].update(
            more={**e["methods"]["c3lt"], "trained_as": "c3lt", "alpha": 0.5, "steps": 2}
        ),
        ("methods.more.trained_as: 'c3lt' is trained with other values of alpha, steps",),
    ),
    "training on other pairs": (
        lambda e: (
            e["methods"].update(more={**e["methods"]["c3lt"], "trained_as": "c3lt"}),
            e["methods"]["c3lt"].update(pairs=[[4, 9]]),
        ),
        ("methods.more.trained_as: 'c3lt' is not trained on [[3, 8]]",),
    ),
    "small that is no mapping": (
        lambda e: e.update(small=[1]),
        ("small: a mapping",),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(mistake: str, write) -> None:
    change, expected = MISTAKES[mistake]
    message = error_of(write, changed(change))
    for part in expected:
        assert part in message


def test_two_mistakes_are_told_together(write) -> None:
    content = changed(lambda e: e["methods"]["pgd"].update(steps=-1, random_start="perhaps"))
    message = error_of(write, content)
    assert "methods.pgd.steps: " in message and "methods.pgd.random_start: " in message


def test_the_tiny_experiment_has_no_mistake(write) -> None:
    write(TINY)
    e = load_experiment("tiny", "published")
    assert e.methods["pgd"].model_dump()["epsilon"] == 64 / 255
    assert e.dataset.kind == "digits" and e.dataset.name == "digits"
    with pytest.raises(Exception, match="frozen"):
        e.seed = 3  # type: ignore[misc]


def test_generators_may_stand_in_any_order(write) -> None:
    write(changed(lambda e: e.update(generators=dict(reversed(e["generators"].items())))))
    assert list(load_experiment("tiny", "small").generators) == ["vae", "encoder", "dcgan"]


def test_gamma_may_be_zero_without_a_discriminator(write) -> None:
    write(changed(lambda e: e["methods"]["c3lt"].update(generator="vae", encoder="vae", gamma=0)))
    assert load_experiment("tiny", "small").methods["c3lt"].generators() == ("vae",)


GAP_METHOD = """
from typing import ClassVar
from counterlens.config import MethodOptions

class Options(MethodOptions):
    requires_gap: ClassVar[bool] = True
"""


def test_a_method_may_require_global_average_pooling(write, tmp_path: Path) -> None:
    file = tmp_path / "mirror_like.py"
    file.write_text(GAP_METHOD)
    content = changed(lambda e: e["methods"].update(mirror={"kind": str(file)}))
    message = error_of(write, content)
    assert message.startswith("methods.mirror: ")
    assert "'lenet' has none (use gap-resnet)" in message
    write({**content, "classifier": {"kind": "gap-resnet"}})
    assert "mirror" in load_experiment("tiny", "small").methods


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
    assert (published.classifier.epochs, reduced.classifier.epochs) == (2, 1)
    assert published.pairs == ((3, 8), (4, 9)) and reduced.pairs == ((4, 9),)
    assert set(published.methods) == {"c3lt", "pgd"} and set(reduced.methods) == {"c3lt"}
    assert set(reduced.generators) == {"dcgan", "encoder"}
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
    assert (published.classifier.epochs, small.classifier.epochs) == (2, 1)
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
    assert e.required_generators(("encoder",)) == ("dcgan", "encoder")
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
    content["classifier"] = {"kind": "lenet", "epochs": 1}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"methods\.mirror-cfe: .* global average pooling"):
        load_experiment("digits", "small")
    path.write_text(yaml.safe_dump({**content, "unsuited": "skip"}), encoding="utf-8")
    found = load_experiment("digits", "small")
    assert "mirror-cfe" not in found.methods and "pgd" in found.methods
    assert "global average pooling" in found.skipped["mirror-cfe"]
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
