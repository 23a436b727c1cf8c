"""The files under `config/`: experiments at both scales, tables, figures, the project file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from counterlens.config import (
    Options,
    figure_names,
    load_figure,
    load_project,
    load_table,
    table_names,
)
from counterlens.errors import UserError
from counterlens.experiments import load_experiment, load_models
from counterlens.plan import inputs
from counterlens.plan.inputs import figure_methods

SHIPPED = Path(__file__).parents[1] / "config"
MODELS = sorted(path.stem for path in (SHIPPED / "models").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (SHIPPED / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_shipped_experiment_loads_at_both_scales(name: str, root: Path) -> None:
    published, small = (load_experiment(name, scale) for scale in ("published", "small"))
    assert (published.scale, small.scale) == ("published", "small")
    # the small scale is a reduction of the same experiment
    for key in ("seed", "pairs", "dataset", "classifier", "classes"):
        assert getattr(small, key) == getattr(published, key)
    assert set(small.methods) == set(published.methods)
    for key, options in small.methods.items():
        assert_reduced(options, published.methods[key])


@pytest.mark.parametrize("name", MODELS)
def test_all_shipped_models_load_at_both_scales(name: str, root: Path) -> None:
    published, small = (load_models(name, scale) for scale in ("published", "small"))
    assert (published.scale, small.scale) == ("published", "small")
    assert (small.name, small.seed, small.dataset) == (name, published.seed, published.dataset)
    for section in ("classifiers", "generators", "oracles"):
        both = getattr(published, section)
        assert getattr(small, section).keys() == both.keys()
        for key, options in getattr(small, section).items():
            assert_reduced(options, both[key])


def assert_reduced(small: Options, published: Options) -> None:
    assert small.kind == published.kind
    assert getattr(small, "epochs", None) is None or small.epochs <= published.epochs  # type: ignore


def test_models_are_shared_by_the_experiments_of_a_dataset(root: Path) -> None:
    """Two experiments on one classifier explain the same network; no model is without a user."""
    experiments = [load_experiment(name, "published") for name in EXPERIMENTS]
    for name in MODELS:
        models = load_models(name, "published")
        users = [e for e in experiments if e.models.name == name]
        assert users and all(e.models == models for e in users)
        assert models.generators.keys() == {key for e in users for key in e.generators}
        assert models.oracles.keys() == {key for e in users for key in e.oracles}
        asking = [*models.generators.values(), *models.oracles.values()]
        asked = {e.classifier for e in users} | {options.classifier for options in asking}
        assert models.classifiers.keys() == asked - {None}
    by_name = {e.name: e for e in experiments}
    for one, other in (("board-mnist", "eced-mnist"), ("cecas-celeba-age", "eced-celeba-age")):
        assert by_name[one].classifier == by_name[other].classifier
        assert by_name[one].models == by_name[other].models
    assert by_name["cecas-celeba-age"].classes == ("not young", "young")
    assert by_name["cecas-celeba-gender"].classes == ("not male", "male")


def test_the_published_values_of_c3lt(root: Path) -> None:
    """Khorram and Fuxin, CVPR 2022, with its released code: spec 1.2, 1.3, 4.4."""
    mnist, fashion = (
        load_experiment(name, "published") for name in ("c3lt-mnist", "c3lt-fashion-mnist")
    )
    assert mnist.pairs == ((3, 8), (4, 9), (5, 6))
    assert fashion.pairs == ((4, 6), (0, 2), (7, 9))
    for e, epsilon in ((mnist, 64 / 255), (fashion, 72 / 255)):
        assert e.seed == 85
        c3lt = e.methods["c3lt"].model_dump()
        wanted = {
            "alpha": 0.1,
            "beta": 0.1,
            "gamma": 0.001,
            "steps": 1,
            "epochs": 200,
            "batch_size": 128,
            "lr": 1e-3,
            "decay_every": 25,
            "smoothness_weight": 10.0,
            "entropy_weight": 1.0,
            "residual": True,
            "preserve_norm": True,
            "train_discriminator": False,
        }
        assert {key: c3lt[key] for key in wanted} == wanted
        assert e.methods["c3lt-n3"].model_dump()["steps"] == 3
        pgd = e.methods["pgd"].model_dump()
        assert (pgd["epsilon"], pgd["step_size"], pgd["steps"]) == (epsilon, 1 / 255, 1000)
        explaingan = e.methods["explaingan"].model_dump()
        terms = ("adversarial", "reconstruction", "consistency", "smoothness", "entropy")
        assert {explaingan[name] for name in terms} == {1} and explaingan["count"] == 1000
        cyclegan = e.methods["cyclegan"].model_dump()
        assert (cyclegan["cycle"], cyclegan["identity"], cyclegan["pool_size"]) == (10, 0.5, 50)
        assert (cyclegan["epochs"], cyclegan["decay_epochs"]) == (100, 100)
        assert (cyclegan["lr"], cyclegan["beta1"], cyclegan["batch_size"]) == (2e-4, 0.5, 1)
        cem = e.methods["cem"].model_dump()
        assert (cem["search_steps"], cem["iterations"], cem["initial_c"]) == (9, 1000, 10)
        assert (cem["kappa"], cem["beta"], cem["gamma"], cem["lr"]) == (0, 0.1, 100, 0.01)
        assert cem["patience"] is None and cem["targeting"] == "pairwise"
    kappas = [e.methods["explaingan"].model_dump()["kappa"] for e in (mnist, fashion)]
    assert kappas == [0.05, 0.1]
    dcgan = mnist.generators["dcgan"].model_dump()
    assert (dcgan["latent_dim"], dcgan["width"], dcgan["epochs"]) == (100, 64, 100)
    assert (dcgan["batch_size"], dcgan["lr"], dcgan["beta1"]) == (64, 2e-4, 0.5)
    pgan = fashion.generators["pgan"].model_dump()
    assert (pgan["latent_dim"], pgan["width"], pgan["lr"]) == (128, 32, 1e-3)
    assert (pgan["beta1"], pgan["beta2"], pgan["penalty"], pgan["ema"]) == (0, 0.99, 10, 0.999)
    assert fashion.methods["c3lt"].generators() == ("pgan", "encoder")
    small = load_experiment("c3lt-fashion-mnist", "small")
    assert small.methods["c3lt"].generators() == ("dcgan", "encoder")
    assert "pgan" not in small.generators


def test_every_shipped_figure_loads(root: Path) -> None:
    names = figure_names()
    assert len(names) == len(set(names)) > 40 and "c3lt-figure3-fashion-mnist" in names
    for name in names:
        figure = load_figure(name)
        e = load_experiment(figure.experiment, "small")
        for method in figure_methods(figure, e):
            assert set(figure.directions) <= set(e.directions(method)), (name, method)


@pytest.mark.parametrize("figure", ["c3lt-figure3", "c3lt-figure10"])
@pytest.mark.parametrize("data", ["", "-fashion-mnist"])
def test_figures_3_and_10_of_c3lt_show_the_paper_s_methods(
    figure: str, data: str, root: Path
) -> None:
    assert load_figure(figure + data).methods == ("explaingan", "cem", "cve", "c3lt")


@pytest.mark.parametrize("name", ["c3lt-mnist", "c3lt-fashion-mnist"])
@pytest.mark.parametrize("scale", ["small", "published"])
def test_tables_1_to_3_of_c3lt_are_about_six_directions(name: str, scale: Any, root: Path) -> None:
    e = load_experiment(name, scale)
    assert e.further_pairs and "c3lt-far" in e.methods
    six = e.directions("original-data")
    assert len(six) == 6
    for number in (1, 2, 3):
        view = inputs.TableView(load_table(f"c3lt-table{number}"), e)
        for method in view.methods:
            assert view.directions(method) == six, (number, method)


def test_every_shipped_table_loads(root: Path) -> None:
    names = table_names()
    assert len(names) == len(set(names)) > 5 and "c3lt-table1-digits" in names
    for name in names:
        table = load_table(name)
        assert table.name == name
        known = set()
        for experiment in table.experiments:
            e = load_experiment(experiment, "published")
            known |= set(e.columns())
            assert any(row.method in e.methods for row in table.rows)
        assert set(table.columns) & {*known, inputs.TIME.name}
        methods = {row.method for row in table.rows}
        for experiment, rows in table.paper_values.items():
            assert experiment in EXPERIMENTS and set(rows) <= methods
            assert all(set(values) <= set(table.columns) for values in rows.values())


def test_a_reduction_of_an_extension_may_remove_what_it_adds(copied_project: Path) -> None:
    content = {
        "extends": "digits",
        "name": "more",
        "methods": {"far": {"kind": "pgd", "epsilon": 1}},
        "small": {"methods": {"far": None, "pgd": None}},
    }
    (copied_project / "config/experiments/more.yaml").write_text(yaml.safe_dump(content))
    published, small = (load_experiment("more", scale) for scale in ("published", "small"))
    assert {"far", "pgd"} <= set(published.methods)
    assert not {"far", "pgd"} & set(small.methods)
    assert small.methods["c3lt"] == load_experiment("digits", "small").methods["c3lt"]


def test_methods_have_the_names_of_their_papers(root: Path) -> None:
    e = load_experiment("digits", "small")
    shown = ("c3lt", "c3lt-n3", "mirror-cfe", "no-attack", "steex", "original-data", "absent")
    names = ("C3LT", "C3LT (n3)", "Mirror-CFE", "ECED (no-attack)", "STEEX (lite)")
    assert tuple(map(e.label, shown)) == (*names, "Original data", "absent")
    board = {row.method: row.label for row in load_table("board").rows if row.method != "pgd"}
    assert {method: e.label(method) for method in board} == board


def test_a_variant_is_the_table_on_other_experiments(root: Path) -> None:
    whole, part = load_table("c3lt-table1"), load_table("c3lt-table1-digits")
    assert part.experiments == ("digits",)
    assert whole.model_copy(update={"name": part.name, "experiments": part.experiments}) == part
    with pytest.raises(UserError, match=r"no such table; known: .*c3lt-table1, c3lt-table1-mnist"):
        load_table("c3lt-table1-cats")
    with pytest.raises(UserError, match="no such table"):
        load_table("c3lt-table")


def test_a_variant_of_a_figure_has_the_keys_of_its_file_but_its_own(root: Path) -> None:
    whole, part = load_figure("c3lt-figure3"), load_figure("c3lt-figure3-fashion-mnist")
    own = {"name", "title", "experiment", "directions"}
    assert part.experiment == "c3lt-fashion-mnist" and part.directions[0] == (4, 6)
    assert part.title == "C3LT, Figure 3: queries and counterfactuals on Fashion-MNIST"
    assert part.model_dump(exclude=own) == whole.model_dump(exclude=own)
    assert load_figure("cecas-figure3-mnist").notes == () != load_figure("cecas-figure3").notes


def test_a_file_without_an_experiment_is_no_figure_itself(root: Path) -> None:
    names = figure_names()
    assert {"eced-figure1-cats", "board-mnist-realism"} <= {*names} and names == sorted(names)
    assert not {"eced-figure1", "board"} & {*names}
    for name in ("eced-figure1", "c3lt-figure3-cats"):
        with pytest.raises(UserError, match=r"no such figure; known: .*c3lt-figure3-fashion"):
            load_figure(name)


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ("c3lt-fashion-mnist", r"variants\.more: a mapping of keys is expected"),
        ("{titel: Three}", r"c3lt-figure5\.yaml: titel: unknown key; allowed: columns, dir"),
    ],
)
def test_mistakes_in_variants_of_figures(copied_project: Path, variant: str, told: str) -> None:
    path = copied_project / "config/figures/c3lt-figure5.yaml"
    path.write_text(f"{path.read_text()}variants:\n  more: {variant}\n")
    with pytest.raises(UserError, match=told):
        load_figure("c3lt-figure5-more")


def test_mistakes_in_tables_and_figures(copied_project: Path) -> None:
    table = copied_project / "config/tables/c3lt-table1.yaml"
    table.write_text(table.read_text().replace("label: CEM", "lable: CEM"))
    with pytest.raises(UserError) as caught:
        load_table("c3lt-table1")
    message = str(caught.value)
    assert "config/tables/c3lt-table1.yaml: rows.1.lable: unknown key; allowed: in_" in message
    assert "rows.1.label: key is missing" in message and "\n" not in message
    figure = copied_project / "config/figures/c3lt-figure5.yaml"
    figure.write_text(figure.read_text().replace("kind: cout", "kind: pie"))
    with pytest.raises(UserError, match=r"c3lt-figure5\.yaml: kind: .*'gallery'.*found 'pie'"):
        load_figure("c3lt-figure5")


def test_the_project_file(copied_project: Path) -> None:
    assert load_project().scale == "small"
    assert load_project({"scale": "published"}).scale == "published"
    with pytest.raises(UserError, match=r"config/config\.yaml: scale: .*found 'huge'"):
        load_project({"scale": "huge"})
    with pytest.raises(UserError, match=r"config/config\.yaml: cores: unknown key; allowed: .*thr"):
        load_project({"cores": 2})


def test_validation_does_not_import_torch(root: Path) -> None:
    script = (
        "import sys\n"
        "from counterlens.plan.plan import Plan\n"
        "for scale in ('small', 'published'): Plan({'scale': scale})\n"
        "heavy = {'torch', 'torchvision', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
