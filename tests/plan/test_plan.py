"""What the rules are told: which code and which settings a job depends on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from counterlens import layout, plugins
from counterlens.config import ORIGINAL_DATA
from counterlens.errors import UserError
from counterlens.plan import code, inputs, plan
from counterlens.plan.plan import Workflow
from counterlens.plugins import PACKAGE

RULES = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted(PACKAGE.parents[1].glob("rules/*.smk"))
)
SOURCES = PACKAGE.relative_to(PACKAGE.parents[1])


@pytest.fixture
def project(root: Path) -> Workflow:
    return Workflow({})


def jobs(project: Workflow) -> Iterator[SimpleNamespace]:
    """Wildcards of every experiment with each of its methods, generators and oracles, if any."""
    for name, e in project.experiments.items():
        some = (e.generators or [None], e.oracles or [None])
        for method, generator, oracle in product(e.methods, *some):
            a, b = e.method_pairs(method)[0]
            yield SimpleNamespace(
                experiment=name,
                dataset=e.dataset.name,
                method=method,
                generator=generator,
                oracle=oracle,
                weight="any",
                scope=e.scopes(generator)[0] if generator else None,
                source=str(a),
                target=str(b),
            )


def file(section: str, kind: str) -> str:
    return str(SOURCES / section / f"{kind.replace('-', '_')}.py")


# Code


def code_functions() -> list[str]:
    """The code functions that the rules name, `report_code` aside."""
    return sorted(set(re.findall(r"code=project\.(\w+_code),", RULES)))


def of_this_job(wildcards: SimpleNamespace, functions: Iterable[str]) -> list[str]:
    """The functions, less those of a generator or oracle where the job's experiment has none."""
    of = {"export_code": "generator", "generator_code": "generator", "oracle_code": "oracle"}
    return [f for f in functions if f not in of or getattr(wildcards, of[f])]


def test_every_rule_has_code_as_input() -> None:
    rules = re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", RULES, re.M | re.S)
    made = [name for name, body in rules if "shell:" in body]
    assert len(made) > 10
    for name, body in rules:
        if "shell:" in body:
            assert re.search(r"^        code=project\.\w+_code", body, re.M), name
    helpers = {"stage_code", "method_code", "report_code"}
    offered = {name for name in dir(Workflow) if name.endswith("_code")} - helpers
    assert offered == set(code_functions())


def test_the_code_inputs_of_all_rules_cover_the_package(project: Workflow) -> None:
    covered: set[str] = set()
    for wildcards in jobs(project):
        for name in of_this_job(wildcards, code_functions()):
            covered |= set(getattr(project, name)(wildcards))
    for module in re.findall(r'code=project\.report_code\("(\w+)"\)', RULES):
        covered |= set(project.report_code(module))
    # plugins that no shipped experiment names are inputs of whoever names them
    used = {
        (section, options.kind)
        for e in project.experiments.values()
        for section, found in (
            ("data", [e.dataset]),
            ("classifiers", [e.classifier]),
            ("generators", e.generators.values()),
            ("oracles", e.oracles.values()),
            ("methods", e.methods.values()),
            ("metrics", e.metrics),
        )
        for options in found
    }
    for section in plugins.SECTIONS:
        for kind in plugins.known(section):
            if (section, kind) not in used:
                covered |= set(code.code(plugins.source_file(section, kind)))
    # the stage of classifiers that are trained already, which no shipped experiment has
    covered |= set(code.code(PACKAGE / "classifiers" / "adopt.py"))
    files = {
        str(SOURCES / path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    # Files of the package's folders that only mark them as packages hold no code.
    empty = {name for name in files if Path(name).name == "__init__.py" and not _has_code(name)}
    assert files - covered <= empty, "no rule has these files as input"
    assert covered <= files


def _has_code(name: str) -> bool:
    import ast

    body = ast.parse(Path(name).read_text(encoding="utf-8")).body
    return any(not isinstance(node, ast.Expr) for node in body)


def test_a_job_depends_on_its_own_plugins_only(project: Workflow) -> None:
    for wildcards in jobs(project):
        e = project.experiments[wildcards.experiment]
        kind = e.methods[wildcards.method].kind
        own = file("methods", kind)
        others = {file("methods", other) for other in plugins.known("methods")} - {own}
        for function in (project.fit_code, project.explain_code):
            found = set(function(wildcards))
            assert own in found and not found & others
            assert file("classifiers", e.classifier.kind) in found
            used = {e.generators[g].kind for g in e.methods[wildcards.method].generators()}
            assert {file("generators", generator) for generator in used} <= found
            # methods never use what judges them
            assert not any(name.startswith(str(SOURCES / "metrics")) for name in found)
            assert not any(name.startswith(str(SOURCES / "oracles")) for name in found)
        assert str(SOURCES / "methods/fit.py") in project.fit_code(wildcards)
        assert str(SOURCES / "methods/fit.py") not in project.explain_code(wildcards)
        assert str(SOURCES / "methods/explain.py") in project.explain_code(wildcards)

        for name in of_this_job(wildcards, ("classifier_code", "oracle_code", "metrics_code")):
            found = set(getattr(project, name)(wildcards))
            assert not any(name.startswith(str(SOURCES / "methods")) for name in found)
            assert not any(name.startswith(str(SOURCES / "generators")) for name in found)
        judges = {file("metrics", metric.kind) for metric in e.metrics}
        judges |= {file("oracles", oracle.kind) for oracle in e.oracles.values()}
        assert judges <= set(project.metrics_code(wildcards))
        assert project.fetch_code(wildcards) == [file("data", e.dataset.kind)]


def test_pgd_needs_no_generator(project: Workflow) -> None:
    wildcards = SimpleNamespace(experiment="digits", method="pgd")
    found = project.explain_code(wildcards)
    assert not {file("generators", kind) for kind in plugins.known("generators")} & set(found)


def test_control_modules_are_inputs_of_the_reports_alone(project: Workflow) -> None:
    control = {
        str(SOURCES / path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if code.is_control(path)
    }
    assert all(Path(name).is_file() for name in control)
    for wildcards in jobs(project):
        for name in of_this_job(wildcards, code_functions()):
            assert not control & set(getattr(project, name)(wildcards))
    assert control <= set(project.report_code("html"))
    templates = {name for name in project.report_code("html") if not name.endswith(".py")}
    assert {Path(name).suffix for name in templates} == {".j2", ".css", ".js"}


def test_a_user_s_own_method_brings_what_it_imports(
    project: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def f():\n    from counterlens.runtime import images\n")
    found = code.code(mine)
    assert str(mine) in found
    assert str(SOURCES / "runtime/images.py") in found
    assert str(SOURCES / "runtime/files.py") in found  # which that imports in turn
    monkeypatch.chdir(tmp_path)
    assert "mine.py" in code.code(mine)


# Settings

SETTINGS = (
    "classifier_settings",
    "oracle_settings",
    "generator_settings",
    "method_settings",
    "explain_settings",
    "evaluation_settings",
    "metrics_settings",
    "report_settings",
)
NAMED = {
    "oracle_settings": "oracle",
    "generator_settings": "generator",
    "method_settings": "method",
    "explain_settings": "method",
}


def settings_of(project: Workflow) -> dict[tuple[str, ...], str]:
    """Every settings string by function, experiment and, where it is of one, its name."""
    return {
        (
            function,
            wildcards.experiment,
            *([getattr(wildcards, NAMED[function])] if function in NAMED else []),
        ): getattr(project, function)(wildcards)
        for wildcards in jobs(project)
        for function in of_this_job(wildcards, SETTINGS)
    }


Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def differences(
    copied_project: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Edit], set[tuple[str, ...]]]:
    """The settings that an edit of digits.yaml changes, other than those of its report."""
    path = copied_project / "config/experiments/digits.yaml"
    (path.parent / "digits-vae.yaml").unlink()  # extends digits, and would change with it
    text = path.read_text()
    before = settings_of(Workflow({}))

    def changed(edit: Edit) -> set[tuple[str, ...]]:
        monkeypatch.chdir(copied_project)
        content = yaml.safe_load(text)
        edit(content)
        path.write_text(yaml.safe_dump(content))
        after = settings_of(Workflow({}))
        assert before.keys() == after.keys()
        found = {key for key in before if before[key] != after[key]}
        assert found & {("report_settings", "digits")} or not found
        return found - {("report_settings", "digits")}

    return changed


def test_an_option_of_a_method_changes_that_method_alone(differences) -> None:
    assert differences(lambda e: e["small"]["methods"]["pgd"].update(steps=7)) == {
        ("method_settings", "digits", "pgd"),
        ("explain_settings", "digits", "pgd"),
    }


def test_pairs_do_not_change_what_a_method_is_trained_with(differences, project) -> None:
    assert differences(lambda e: e["methods"]["c3lt-n3"].pop("pairs")) == set()
    assert differences(lambda e: e["methods"]["c3lt"].update(pairs=[[4, 9]])) == set()
    # an oracle may be trained on the pairs, and a joint training is on all of them
    e = project.experiments["digits"]
    assert differences(lambda e: e["pairs"].append([5, 6])) == {
        *(("oracle_settings", "digits", oracle) for oracle in e.oracles),
        *(
            ("method_settings", "digits", name)
            for name in e.methods
            if e.methods[name].joint and e.methods[name].pairs is None
        ),
    }


def test_evaluation_changes_the_counterfactuals_only(differences, project) -> None:
    methods = project.experiments["digits"].methods
    assert differences(lambda e: e["evaluation"].update(images=7)) == {
        ("evaluation_settings", "digits"),
        *(("explain_settings", "digits", method) for method in methods),
    }


def test_other_sections(differences, project) -> None:
    oracles = project.experiments["digits"].oracles
    assert differences(lambda e: e["classifier"].update(lr=0.5)) == {
        ("classifier_settings", "digits"),
        *(("oracle_settings", "digits", oracle) for oracle in oracles),  # trained like it
    }
    assert differences(lambda e: e["generators"]["encoder"].update(batch_size=7)) == {
        ("generator_settings", "digits", "encoder")
    }
    assert differences(lambda e: e["metrics"][4].update(steps=7)) == {
        ("metrics_settings", "digits")
    }
    assert differences(lambda e: e.update(description="the same")) == set()


def test_the_seed_changes_everything_of_its_experiment(differences, project) -> None:
    found = differences(lambda e: e.update(seed=7))
    everything = {key for key in settings_of(project) if key[1] == "digits"}
    assert found == everything - {("report_settings", "digits")}


def test_spelling_a_default_out_changes_nothing(differences) -> None:
    assert differences(lambda e: e["methods"]["c3lt"].update(alpha=0.1)) == set()


def test_only_what_shapes_a_training_trains_anew(project: Workflow) -> None:
    name = "mirror-cfe-mnist"
    e = project.experiments[name]
    wildcards = SimpleNamespace(experiment=name, method="mirror-cfe")

    def settings(**changes: Any) -> tuple[str, str]:
        options = e.methods["mirror-cfe"].model_copy(update=changes)
        methods = {**e.methods, "mirror-cfe": options}
        project.experiments[name] = e.model_copy(update={"methods": methods})
        return project.method_settings(wildcards), project.explain_settings(wildcards)

    fit, explain = settings()
    for change in ({"point": "reflection"}, {"grid": 7}):
        assert settings(**change)[0] == fit and settings(**change)[1] != explain
    assert settings(pairs=e.pairs[:1]) == (fit, explain)
    assert settings(lr=0.5)[0] != fit
    # a joint training depends on the pairs that it is of
    joint = {"scope": "all-pairs"}
    assert settings(**joint)[0] != settings(**joint, pairs=e.pairs[:1])[0] != fit


# Targets and inputs


def test_counterfactuals_of_digits(project: Workflow) -> None:
    found = project.counterfactuals("digits")
    folder = "results/digits/counterfactuals"
    e = project.experiments["digits"]  # some of its methods run on one pair
    expected = sum(2 * len(e.method_pairs(name)) for name in (*e.methods, ORIGINAL_DATA))
    assert len(found) == len(set(found)) == expected
    assert f"{folder}/c3lt/9_to_4.safetensors" in found
    assert f"{folder}/c3lt-n3/3_to_8.safetensors" not in found
    assert f"{folder}/original-data/3_to_8.safetensors" in found
    metrics = project.metrics("digits")
    assert len(metrics) == 2 * len(found)
    assert project.metrics("digits", ["pgd", "absent"]) == [
        f"results/digits/metrics/pgd/{direction}.{suffix}"
        for direction in ("3_to_8", "8_to_3", "4_to_9", "9_to_4")
        for suffix in ("json", "parquet")
    ]


def test_inputs_of_the_generators_and_methods_of_digits(project: Workflow) -> None:
    models = "results/digits/generators"
    encoder = SimpleNamespace(experiment="digits", generator="encoder", scope="4-9")
    assert project.generator_inputs(encoder) == [f"{models}/dcgan/all-classes/model.safetensors"]
    dcgan = SimpleNamespace(experiment="digits", generator="dcgan", scope="all-classes")
    assert project.generator_inputs(dcgan) == []
    assert (project.generator_threads(dcgan), project.generator_threads(encoder)) == (
        project.project.threads,
        1,
    )
    back = SimpleNamespace(experiment="digits", method="c3lt", source="9", target="4")
    assert project.method_generators(back) == [
        f"{models}/dcgan/all-classes/model.safetensors",
        f"{models}/encoder/4-9/model.safetensors",
    ]
    assert project.method_model(back) == ["results/digits/methods/c3lt/4-9/model.safetensors"]
    fit = SimpleNamespace(experiment="digits", method="c3lt", scope="4-9")
    assert project.method_generators(fit) == project.method_generators(back)
    assert project.earlier_sets(back) == []
    cecas = SimpleNamespace(experiment="digits", method="cecas", source="9", target="4")
    assert project.earlier_sets(cecas) == [
        f"results/digits/counterfactuals/ace/9_to_4.{suffix}"
        for suffix in ("safetensors", "parquet")
    ]
    pgd = SimpleNamespace(experiment="digits", method="pgd", source="9", target="4")
    assert project.method_generators(pgd) == project.method_model(pgd) == []
    assert set(project.generators("digits")) == {
        f"{models}/dcgan/all-classes/model.safetensors",
        f"{models}/ddpm/all-classes/model.safetensors",
        f"{models}/cem-autoencoder/all-classes/model.safetensors",
        f"{models}/ddpm/all-classes/diffusers/model_index.json",
        f"{models}/beta-tcvae/all-classes/model.safetensors",
        f"{models}/sean/all-classes/model.safetensors",
        f"{models}/encoder/3-8/model.safetensors",
        f"{models}/encoder/4-9/model.safetensors",
        f"{models}/latent-diffusion/all-classes/model.safetensors",
    }


def test_inputs_of_shared_and_joint_trainings(project: Workflow) -> None:
    name = "mirror-cfe-mnist"
    folder = f"results/{name}/methods"
    for method, model in (
        ("mirror-cfe", "mirror-cfe/4-9"),
        ("mirror-cfe-reflection", "mirror-cfe/4-9"),
        ("mirror-cfe-multi-class", "mirror-cfe-multi-class/all-pairs"),
    ):
        back = SimpleNamespace(experiment=name, method=method, source="9", target="4")
        assert project.method_model(back) == [f"{folder}/{model}/model.safetensors"]
    for scope, method in (("all-pairs", "mirror-cfe-multi-class"), ("4-9", "mirror-cfe")):
        fit = SimpleNamespace(experiment=name, method=method, scope=scope)
        assert project.method_generators(fit) == []
    curves = [str(path) for path in inputs.curve_files(project.experiments[name])]
    assert [path for path in curves if path.startswith(folder)] == [
        f"{folder}/{model}/training.csv"
        for model in (
            "mirror-cfe/3-8",
            "mirror-cfe/4-9",
            "mirror-cfe/5-6",
            "mirror-cfe-multi-class/all-pairs",
        )
    ]


def test_predictions_are_an_input_where_they_choose_the_queries(project: Workflow) -> None:
    predictions = "results/mirror-cfe-mnist/classifier/predictions.parquet"
    mirror, plain = (SimpleNamespace(experiment=n) for n in ("mirror-cfe-mnist", "c3lt-mnist"))
    assert project.explained_predictions(mirror) == [predictions]
    assert project.explained_predictions(plain) == []
    e = project.experiments["mirror-cfe-mnist"]
    for changes, wanted in (
        ({"queries": "label"}, [predictions]),  # the errors are still chosen by it
        ({"errors": 0}, [predictions]),
        ({"queries": "label", "errors": 0}, []),
    ):
        evaluation = e.evaluation.model_copy(update=changes)
        project.experiments[e.name] = e.model_copy(update={"evaluation": evaluation})
        assert project.explained_predictions(mirror) == wanted


def test_animations_are_targets_of_their_experiment(project: Workflow) -> None:
    name = "mirror-cfe-mnist"
    folders = [
        f"results/{name}/animations/mirror-cfe/mnist/{pair}" for pair in ("3-8", "4-9", "5-6")
    ]
    assert project.animations(name) == folders  # of the first counterfactuals alone
    assert set(folders) < set(project.experiment_target(name))
    wildcards = SimpleNamespace(experiment=name, method="mirror-cfe", scope="4-9")
    stem = f"results/{name}/counterfactuals/mirror-cfe"
    assert project.animation_inputs(wildcards) == [
        f"{stem}/{direction}.{suffix}"
        for direction in ("4_to_9", "9_to_4")
        for suffix in ("safetensors", "parquet")
    ]
    e = project.experiments[name]
    none = e.evaluation.model_copy(update={"animations": 0})
    project.experiments[name] = e.model_copy(update={"evaluation": none})
    assert project.animations(name) == [] == project.animations("c3lt-mnist")


def test_datasets_are_named_with_their_options(project: Workflow) -> None:
    name = "celeba-subset-mouth-slightly-open"
    wildcards = SimpleNamespace(dataset=name)
    assert project.dataset_arguments(wildcards) == (
        "celeba-subset --set attribute=Mouth_Slightly_Open"
    )
    assert project.raw_files(wildcards) == [f"data/raw/{name}/celeba_subset_64.zip"]
    assert project.dataset_arguments(SimpleNamespace(dataset="mnist")) == "mnist"


def test_pretrained_oracles_are_their_weights(project: Workflow) -> None:
    found = project.oracles("c3lt-mnist")
    assert str(layout.weight("inception")).rsplit("/", 1)[0] == "data/weights"
    weights = [name for name in found if name.startswith("data/weights/")]
    assert len(weights) == 1 and "results/c3lt-mnist/oracles/inception" not in " ".join(found)
    assert "results/c3lt-mnist/oracles/autoencoders/model.safetensors" in found


def test_all_builds_what_the_project_file_lists(project: Workflow) -> None:
    found = project.all_targets()
    for name in project.project.experiments:
        assert f"results/{name}/report.html" in found
        assert f"results/tables/{name}-cost.csv" in found
    for name in project.project.tables:
        assert f"results/tables/{name}.csv" in found
    for name in project.project.figures:
        assert f"results/figures/{name}.png" in found


def test_shards(copied_project: Path) -> None:
    (copied_project / "config/experiments/digits-vae.yaml").unlink()  # extends digits
    path = copied_project / "config/experiments/digits.yaml"
    content = yaml.safe_load(path.read_text())
    content["evaluation"] = {"images": 50, "shard_size": 20}
    path.write_text(yaml.safe_dump(content))
    project = Workflow({})
    wildcards = SimpleNamespace(experiment="digits", method="pgd", source="9", target="4")
    assert project.shard_count(wildcards) == 3
    stem = "results/digits/counterfactuals/pgd/shards/9_to_4"
    assert set(project.shards(wildcards)) == {
        file
        for n in (1, 2, 3)
        for file in (
            f"{stem}.{n}-of-3.safetensors",
            f"{stem}.{n}-of-3.parquet",
            f"results/timings/digits/pgd/9_to_4.{n}-of-3.json",
        )
    }
    assert "digits" in project.sharded(True).split("|")
    assert "digits" not in project.sharded(False).split("|")


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        (
            "config.yaml",
            "  - digits\n",
            "  - digit\n",
            r"config/config\.yaml: experiments: 'digit' is unknown; known: .*digits",
        ),
        (
            "config.yaml",
            "  - c3lt-table1\n",
            "  - c3lt-table9\n",
            r"config/config\.yaml: tables: 'c3lt-table9' is unknown; known: .*c3lt-table1, ",
        ),
        (
            "config.yaml",
            "  - c3lt-figure5\n",
            "  - c3lt-figure1\n",
            r"config/config\.yaml: figures: 'c3lt-figure1' is unknown; known: ",
        ),
        (
            "tables/c3lt-table1.yaml",
            "  digits: [digits]",
            "  digits: [digit]",
            r"table c3lt-table1-digits: experiments: 'digit' is unknown; known: ",
        ),
        (
            "figures/c3lt-figure5.yaml",
            "experiment: c3lt-mnist",
            "experiment: c3lt",
            r"figure c3lt-figure5: experiment: 'c3lt' is unknown; known: ",
        ),
    ],
)
def test_names_that_are_not_there(
    copied_project: Path, file: str, old: str, new: str, told: str
) -> None:
    path = copied_project / "config" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=told):
        Workflow({})


def test_patterns() -> None:
    assert re.fullmatch(plan.any_of([]), "") is None
    assert re.fullmatch(plan.any_of([]), "any") is None
    assert plan.any_of(["b", "a", "b"]) == "a|b"
    assert Workflow.hours(3)(None, 1) == 180 and Workflow.hours(3)(None, 2) == 360


def test_the_mirror_reaches_the_jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("COUNTERLENS_MIRROR", "first")
    Workflow({"mirror": "second"})
    assert os.environ["COUNTERLENS_MIRROR"] == "first"  # the environment wins
    monkeypatch.delenv("COUNTERLENS_MIRROR")
    Workflow({"mirror": "second"})
    assert os.environ["COUNTERLENS_MIRROR"] == "second"


def test_a_table_needs_the_models_of_its_rows_alone(project: Workflow) -> None:
    found = project.table_inputs(SimpleNamespace(table="c3lt-table1-mnist"))
    assert "results/c3lt-mnist/methods/c3lt/5-6/card.json" in found
    assert "results/c3lt-mnist/generators/encoder/5-6/card.json" in found
    assert not [name for name in found if "/c3lt-cls" in name or "/c3lt-n3" in name]
    # the rows of the ablation share one pair
    found = project.table_inputs(SimpleNamespace(table="c3lt-table5"))
    assert "results/c3lt-mnist/methods/c3lt-cls/4-9/card.json" in found
    assert not [name for name in found if "5-6" in name or "3-8" in name]


def test_what_a_method_builds_on_is_behind_it(project: Workflow) -> None:
    e = project.experiments["cecas-mnist"]
    generators, trained = inputs.trainings(e, ["cecas-alpha-0"], e.pairs)
    assert generators == [("ddpm", "all-classes")]
    assert trained == [("cecas", "all-pairs")]
    assert inputs.trainings(e, ["pgd", "original-data"], e.pairs) == ([], [])


def test_a_board_is_all_about_its_experiments(project: Workflow) -> None:
    targets = project.named_targets()
    board = targets["board-digits"]
    assert set(board) == {*project.experiment_target("digits")}
    assert "results/tables/board-digits.csv" in board
    for picture in ("proximity", "realism"):
        assert f"results/figures/board-digits-{picture}.png" in board
    assert [table.name for table in project.boards("digits")] == ["board-digits"]
    # the experiment of that name and the table of that name are one target
    assert set(targets["board-mnist"]) == {*project.experiment_target("board-mnist")}
    shown = project.report_settings(SimpleNamespace(experiment="digits"))
    assert '"ranked": true' in shown and "board-digits-realism" in shown


def test_what_a_training_took_is_an_input_of_the_costs(project: Workflow) -> None:
    found = project.cost_inputs(SimpleNamespace(experiment="digits"))
    folder = "results/timings/digits/training"
    for place in ("generators/dcgan/all-classes", "generators/encoder/4-9", "methods/c3lt/3-8"):
        assert f"{folder}/{place}.json" in found
    assert not any("/pgd/" in name for name in found if name.startswith(folder))
