"""Every mistake in an experiment's file is one line that names the file and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterlens.experiments import load_experiment

from .contents import TINY, Change, changed, error_of

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
