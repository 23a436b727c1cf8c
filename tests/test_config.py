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
from counterlens.experiments import load_experiment, load_models

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
    """Write an experiment or models file (a mapping or YAML text) in an empty project."""
    monkeypatch.chdir(tmp_path)

    def save(
        content: dict[str, Any] | str, name: str = "tiny", folder: str = "experiments"
    ) -> Path:
        path = Path("config") / folder / f"{name}.yaml"
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
    "missing classifier": (lambda e: e.pop("classifier"), ("classifier: key is missing",)),
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
    "entry without kind and with another name": (
        lambda e: e["methods"].update(mine={"epsilon": 1}),
        ("methods.mine.kind: 'mine' is unknown; allowed: ", "c3lt", "path/to/file.py"),
    ),
    "entry that is no mapping": (
        lambda e: e["methods"].update(pgd=None),
        ("methods.pgd: a mapping with a 'kind' is expected",),
    ),
    "dataset without kind": (
        lambda e: e.update(dataset={"size": 16}),
        ("dataset: a mapping with a 'kind' is expected",),
    ),
    "classifier without kind": (
        lambda e: e.update(classifier={"epochs": 2}),
        ("classifier: a mapping with a 'kind' is expected",),
    ),
    "metric without kind": (
        lambda e: e["metrics"].append({"errors": True}),
        ("metrics.2: a mapping with a 'kind' is expected",),
    ),
    "unknown metric by name": (
        lambda e: e["metrics"].append("beauty"),
        ("metrics.2.kind: 'beauty' is unknown; allowed: ", "validity"),
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
    e = load_experiment("tiny", "small")
    assert list(e.models.generators) == ["vae", "encoder", "dcgan"]
    assert list(e.generators) == ["encoder", "dcgan"]  # those that a method needs
    assert e.models.required_generators(("encoder", "vae")) == ("dcgan", "encoder", "vae")


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


# Models of a dataset


SHARED: dict[str, Any] = {
    "dataset": "digits",
    "seed": 7,
    "classifiers": {"lenet": {"epochs": 2}, "second": {"kind": "gap-resnet", "widths": [4]}},
    "generators": {
        "dcgan": {"width": 4, "classifier": "lenet"},
        "encoder": {
            "kind": "dcgan-encoder",
            "generator": "dcgan",
            "width": 4,
            "classifier": "lenet",
        },
        "vae": {"width": 4, "classifier": "second"},
        "cem-autoencoder": {},
    },
    "oracles": {"autoencoders": {}, "judge": {"kind": "feature-extractor", "classifier": "lenet"}},
}
NAMING: dict[str, Any] = {
    "name": "tiny",
    "models": "shared",
    "classifier": "lenet",
    "pairs": [[3, 8], [4, 9]],
    "methods": {
        "c3lt": {"generator": "dcgan", "encoder": "encoder"},
        "pgd": {"epsilon": "64/255"},
    },
    "metrics": ["validity", {"kind": "im"}],
    "evaluation": {"images": 10},
}
FACES: dict[str, Any] = {
    "dataset": "celeba-subset",
    "seed": 7,
    "classifiers": {
        "smile": {"kind": "gap-resnet", "attribute": "Smiling", "widths": [4]},
        "smile-again": {"kind": "lenet", "attribute": "Smiling"},
        "age": {"kind": "gap-resnet", "attribute": "Young", "widths": [4]},
    },
    "generators": {
        "latent-diffusion": {"classes": [0, 1], "classifier": "smile"},
        "beta-tcvae": {"classifier": "smile"},
    },
    "oracles": {
        "judge": {"kind": "feature-extractor", "classifier": "smile"},
        "autoencoders": {},
    },
}


def of_faces(classifier: str, *methods: str, metrics: tuple[Any, ...] = ()) -> dict[str, Any]:
    """An experiment on faces."""
    return {
        "name": "tiny",
        "models": "shared",
        "classifier": classifier,
        "pairs": [[0, 1]],
        "methods": {name: {} for name in methods},
        "metrics": list(metrics),
        "evaluation": {"images": 10},
    }


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


def test_a_generator_that_one_classifier_judged_may_serve_another(write) -> None:
    """Unlike C3LT's encoder, which learns of its classifier."""
    write(FACES, "shared", "models")
    for classifier in ("smile", "smile-again", "age"):
        write(of_faces(classifier, "dive"))
        e = load_experiment("tiny", "small")
        assert e.generators["beta-tcvae"].classifier == "smile"


# Attributes


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
