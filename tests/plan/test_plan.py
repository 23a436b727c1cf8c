"""What the rules are told: which code and which settings a job depends on."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from counterlens import layout, plugins
from counterlens.config import ORIGINAL_DATA
from counterlens.errors import UserError
from counterlens.plan import code, inputs, plan, targets
from counterlens.plan.plan import Plan
from counterlens.plugins import PACKAGE

RULES = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted(PACKAGE.parents[1].glob("rules/*.smk"))
)
SOURCES = PACKAGE.relative_to(PACKAGE.parents[1])


class Job(dict[str, str]):
    """Wildcards, as Snakemake hands them to a function."""

    def __getattr__(self, name: str) -> str:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@pytest.fixture
def project(root: Path) -> Plan:
    return Plan({})


def rules() -> dict[str, str]:
    """The rules that run something, by name."""
    bodies = re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", RULES, re.M | re.S)
    return {name: body for name, body in bodies if "shell:" in body}


def asked(body: str, what: str) -> tuple[str, ...]:
    """The words that a rule hands to `project.code`, `project.sources` or `project.settings`."""
    match = re.search(rf"project\.(?:{what})\(([^)]*)\)", body)
    return () if match is None else tuple(ast.literal_eval(f"[{match[1]}]"))


def jobs(project: Plan, body: str) -> Iterator[Job]:
    """Wildcards of all jobs of a rule, one direction and one scope of each."""
    if "{models}" in body:
        for name, models in project.models.items():
            for section in ("classifier", "oracle", "generator"):
                if f"{{{section}}}" in body:
                    for each in getattr(models, f"{section}s"):
                        if "project.diffusion_models()" in body and not re.fullmatch(
                            project.diffusion_models(), each
                        ):
                            continue
                        yield Job({"models": name, section: each, "scope": "all-classes"})
    elif "{experiment}" in body:
        for name, e in project.experiments.items():
            rows = e.methods if "{method}" in body else (ORIGINAL_DATA,)
            for method in rows:
                source, target = map(str, e.method_pairs(method)[0])
                place = {"experiment": name, "method": method, "source": source, "target": target}
                yield Job(place)
    elif "{dataset}" in body:
        yield from (Job(dataset=name) for name in project.datasets)
    else:
        for kind in ("table", "figure"):
            if f"{{{kind}}}" in body:
                yield from (Job({kind: name}) for name in getattr(project, f"{kind}s"))
        if "{weight}" in body:
            yield Job(weight="any")


def code_of(project: Plan, name: str, job: Job) -> list[str]:
    """The code that a rule asks for a job."""
    body = rules()[name]
    whole = project.sources if "project.sources(" in body else project.code
    return whole(*asked(body, "code|sources"))(job)


def file(section: str, kind: str) -> str:
    return str(SOURCES / section / f"{kind.replace('-', '_')}.py")


# Code


def test_every_rule_has_code_as_input() -> None:
    assert len(rules()) > 15
    for name, body in rules().items():
        assert re.search(r"^        code=project\.(code|sources)\(", body, re.M), name
        assert asked(body, "code|sources"), name


def test_the_code_inputs_of_all_rules_cover_the_package(project: Plan) -> None:
    covered: set[str] = set()
    for name, body in rules().items():
        for job in jobs(project, body):
            covered |= set(code_of(project, name, job))
    # plugins that no shipped file names are inputs of whoever names them
    for section in plugins.SECTIONS:
        for kind in plugins.known(section):
            if file(section, kind) not in covered:
                covered |= set(code.code_of([plugins.source_file(section, kind)]))
    # the control part, and what runs before a stage begins
    control = {path for path in PACKAGE.rglob("*.py") if code.is_control(path)}
    around = {PACKAGE / "runtime/gpu_slots.py", PACKAGE / "runtime/stopwatch.py"}
    files = {
        str(SOURCES / path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path not in control | around
    }
    # Files of the package's folders that only mark them as packages hold no code.
    empty = {name for name in files if Path(name).name == "__init__.py" and not _has_code(name)}
    assert files - covered <= empty, "no rule has these files as input"
    assert all(Path(name).is_file() for name in covered)


def _has_code(name: str) -> bool:
    body = ast.parse(Path(name).read_text(encoding="utf-8")).body
    return any(not isinstance(node, ast.Expr) for node in body)


def test_a_job_depends_on_its_own_plugins_only(project: Plan) -> None:
    for rule in ("fit", "explain"):
        for job in jobs(project, rules()[rule]):
            e = project.experiments[job.experiment]
            options = e.methods[job.method]
            needed = set(code_of(project, rule, job))
            others = {file("methods", other) for other in plugins.known("methods")}
            assert needed & others == {file("methods", options.kind)} & others
            assert file("classifiers", e.classifier_options.kind) in needed
            used = {e.generators[generator].kind for generator in options.generators()}
            assert {file("generators", kind) for kind in used} <= needed
            # methods never use what judges them
            assert not any(name.startswith(str(SOURCES / "metrics")) for name in needed)
            assert not any(name.startswith(str(SOURCES / "oracles")) for name in needed)
            assert str(SOURCES / f"methods/{rule}.py") in needed
    for rule in ("classifier", "oracle", "metrics"):
        for job in jobs(project, rules()[rule]):
            needed = set(code_of(project, rule, job))
            assert not any(name.startswith(str(SOURCES / "methods")) for name in needed)
            assert not any(name.startswith(str(SOURCES / "generators")) for name in needed)
    for name, e in project.experiments.items():
        judges = {file("metrics", metric.kind) for metric in e.metrics}
        judges |= {file("oracles", oracle.kind) for oracle in e.oracles.values()}
        recipes = {o.classifier for o in e.oracles.values() if o.classifier}
        judges |= {file("classifiers", e.models.classifiers[each].kind) for each in recipes}
        assert judges <= set(code_of(project, "metrics", Job(experiment=name)))
    fetched = Job(dataset="fashion-mnist")
    assert code_of(project, "fetch", fetched) == [file("data", "fashion-mnist")]


def test_pgd_needs_no_generator(project: Plan) -> None:
    needed = set(code_of(project, "explain", Job(experiment="digits", method="pgd")))
    assert not {file("generators", kind) for kind in plugins.known("generators")} & needed


def test_control_modules_are_inputs_of_the_reports_alone(project: Plan) -> None:
    control = {
        str(SOURCES / path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if code.is_control(path)
    }
    reports = {"found", "table", "figure", "animations", "cost", "report"}
    for name, body in rules().items():
        for job in jobs(project, body):
            assert name in reports or not control & set(code_of(project, name, job))
    shown = code_of(project, "report", Job(experiment="digits"))
    assert str(SOURCES / "plan/inputs.py") in shown
    templates = {name for name in shown if not name.endswith(".py")}
    assert {Path(name).suffix for name in templates} == {".j2", ".css", ".js"}


def test_a_word_that_a_job_has_nothing_of_is_told(project: Plan) -> None:
    with pytest.raises(UserError, match="code: no job of an experiment has a 'generater'"):
        project.code("generater")(Job(experiment="digits", method="pgd"))
    with pytest.raises(UserError, match="code: no training of a model has a 'metrics'"):
        project.code("metrics")(Job(models="digits", classifier="lenet"))


def test_a_user_s_own_method_brings_what_it_imports(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def f():\n    from counterlens.runtime import images\n")
    needed = code.code_of([mine])
    assert str(mine) in needed
    assert str(SOURCES / "runtime/images.py") in needed
    assert str(SOURCES / "runtime/files.py") in needed  # which that imports in turn
    monkeypatch.chdir(tmp_path)
    assert "mine.py" in code.code_of([mine])


# Settings


def settings_of(project: Plan) -> dict[tuple[str, ...], str]:
    """Every settings string by rule and wildcards."""
    return {
        (
            name,
            *(value for key, value in job.items() if key not in ("source", "target", "scope")),
        ): project.settings(*asked(body, "settings"))(job)
        for name, body in rules().items()
        if "project.settings(" in body
        for job in jobs(project, body)
    }


Edit = Callable[[dict[str, Any]], object]
Differences = Callable[..., set[tuple[str, ...]]]


@pytest.fixture
def differences(copied_project: Path, monkeypatch: pytest.MonkeyPatch) -> Differences:
    """The settings that an edit of a digits.yaml changes, other than those of reports."""
    (copied_project / "config/experiments/digits-dcgan.yaml").unlink()  # extends digits
    before = settings_of(Plan({}))

    def changed(edit: Edit, folder: str = "experiments") -> set[tuple[str, ...]]:
        monkeypatch.chdir(copied_project)
        path = copied_project / "config" / folder / "digits.yaml"
        text = path.read_text()
        content = yaml.safe_load(text)
        edit(content)
        path.write_text(yaml.safe_dump(content))
        after = settings_of(Plan({}))
        path.write_text(text)
        assert before.keys() == after.keys()
        different = {key for key in before if before[key] != after[key]}
        assert different & {("report", "digits", ORIGINAL_DATA)} or not different
        return {key for key in different if key[0] not in ("report", "table")}

    return changed


def explained(*methods: str) -> set[tuple[str, ...]]:
    """The jobs that ask for the settings of explaining by some methods."""
    return {(rule, "digits", method) for rule in ("explain", "explain_shard") for method in methods}


def test_an_option_of_a_method_changes_that_method_alone(differences) -> None:
    assert differences(lambda e: e["small"]["methods"]["pgd"].update(steps=7)) == {
        ("fit", "digits", "pgd"),
        *explained("pgd"),
    }


def test_pairs_do_not_change_what_a_method_is_trained_with(differences, project) -> None:
    assert differences(lambda e: e["methods"]["c3lt-n3"].pop("pairs")) == set()
    assert differences(lambda e: e["methods"]["c3lt"].update(pairs=[[4, 9]])) == set()
    # a joint training is on all of them
    e = project.experiments["digits"]
    joint = {name for name in e.methods if e.methods[name].joint and e.methods[name].pairs is None}
    assert joint
    assert differences(lambda e: e["pairs"].append([4, 8])) == {
        ("fit", "digits", name) for name in joint
    }


def test_evaluation_changes_the_counterfactuals_only(differences, project) -> None:
    methods = project.experiments["digits"].methods
    assert differences(lambda e: e["evaluation"].update(images=7)) == {
        ("original_data", "digits", ORIGINAL_DATA),
        *(("animations", "digits", method) for method in methods),
        *explained(*methods),
    }


def test_models(differences) -> None:
    def models(edit: Edit) -> set[tuple[str, ...]]:
        return differences(edit, "models")

    # what names a classifier, its recipe or its labels depends on its options
    asking = models(lambda m: m["classifiers"]["gap-resnet"].update(lr=0.5))
    assert ("classifier", "digits", "gap-resnet") in asking
    assert ("oracle", "digits", "feature-extractor") in asking
    assert ("generator", "digits", "vae") in asking
    assert ("generator", "digits", "encoder") not in asking  # which names the other one
    assert ("oracle", "digits", "autoencoders") not in asking  # which names none
    encoder = models(lambda m: m["generators"]["encoder"].update(batch_size=7))
    assert encoder == {("generator", "digits", "encoder")}
    simsiam = models(lambda m: m["oracles"]["simsiam"].update(batch_size=7))
    assert simsiam == {("oracle", "digits", "simsiam")}


def test_metrics_and_descriptions(differences, project) -> None:
    rows = (*project.experiments["digits"].methods,)
    metrics = differences(lambda e: e["metrics"][4].update(steps=7))
    assert metrics == {
        (rule, "digits", row) for rule in ("metrics", "metrics_of_pair") for row in rows
    }
    assert differences(lambda e: e.update(description="the same")) == set()


def test_the_seed_changes_everything_of_its_dataset(differences, project) -> None:
    changed = differences(lambda m: m.update(seed=7), "models")
    everything = {key for key in settings_of(project) if key[1] == "digits"}
    assert changed == {key for key in everything if key[0] not in ("report", "found", "export")} | {
        key for key in everything if key[0] == "export"
    }


def test_spelling_a_default_out_changes_nothing(differences) -> None:
    assert differences(lambda e: e["methods"]["c3lt"].update(alpha=0.1)) == set()


def test_only_what_shapes_a_training_trains_anew(project: Plan) -> None:
    name = "mirror-cfe-mnist"
    e = project.experiments[name]
    job = Job(experiment=name, method="mirror-cfe")

    def settings(**changes: Any) -> tuple[str, str]:
        options = e.methods["mirror-cfe"].model_copy(update=changes)
        methods = {**e.methods, "mirror-cfe": options}
        project.experiments[name] = e.model_copy(update={"methods": methods})
        rule = rules()
        fit, explain = (project.settings(*asked(rule[r], "settings")) for r in ("fit", "explain"))
        return fit(job), explain(job)

    fit, explain = settings()
    for change in ({"point": "reflection"}, {"grid": 7}):
        assert settings(**change)[0] == fit and settings(**change)[1] != explain
    assert settings(pairs=e.pairs[:1]) == (fit, explain)
    assert settings(lr=0.5)[0] != fit
    # a joint training depends on the pairs that it is of
    joint = {"scope": "all-pairs"}
    assert settings(**joint)[0] != settings(**joint, pairs=e.pairs[:1])[0] != fit


# Targets and inputs


def test_inputs_of_the_generators_and_methods_of_digits(project: Plan) -> None:
    models = "results/models/digits/generators"
    encoder = Job(models="digits", generator="encoder", scope="4-9")
    assert project.generator_inputs(encoder) == [f"{models}/dcgan/all-classes/model.safetensors"]
    classifier = "results/models/digits/classifiers/gap-resnet/model.safetensors"
    assert project.classifier_of(encoder) == [classifier.replace("gap-resnet", "lenet")]
    dcgan = Job(models="digits", generator="dcgan", scope="all-classes")
    assert project.generator_inputs(dcgan) == []
    assert (project.generator_threads(dcgan), project.generator_threads(encoder)) == (
        project.config.threads,
        1,
    )
    assert project.classifier_of(Job(models="digits", oracle="autoencoders")) == []
    assert project.classifier_of(Job(experiment="digits")) == [classifier]
    back = Job(experiment="digits", method="c3lt", source="9", target="4")
    assert project.method_generators(back) == [f"{models}/vae/all-classes/model.safetensors"]
    paper = Job({**back, "experiment": "digits-dcgan"})
    assert project.method_generators(paper) == [
        f"{models}/dcgan/all-classes/model.safetensors",
        f"{models}/encoder/4-9/model.safetensors",
    ]
    assert project.method_model(back) == ["results/digits/methods/c3lt/4-9/model.safetensors"]
    fit = Job(experiment="digits", method="c3lt", scope="4-9")
    assert project.method_generators(fit) == project.method_generators(back)
    assert project.earlier_sets(back) == []
    cecas = Job(experiment="digits", method="cecas", source="9", target="4")
    assert project.earlier_sets(cecas) == [
        f"results/digits/counterfactuals/ace/9_to_4.{suffix}"
        for suffix in ("safetensors", "parquet")
    ]
    pgd = Job(experiment="digits", method="pgd", source="9", target="4")
    assert project.method_generators(pgd) == project.method_model(pgd) == []


def test_all_models_of_a_dataset(project: Plan) -> None:
    models = "results/models/digits"
    wanted = targets.models_target(project, "digits")
    assert len(wanted) == len(set(wanted))
    assert set(wanted) == {
        f"{models}/classifiers/gap-resnet/model.safetensors",
        f"{models}/classifiers/lenet/model.safetensors",
        *(
            f"{models}/generators/{name}/all-classes/model.safetensors"
            for name in ("dcgan", "vae", "ddpm", "cem-autoencoder", "beta-tcvae", "sean")
        ),
        f"{models}/generators/latent-diffusion/all-classes/model.safetensors",
        f"{models}/generators/ddpm/all-classes/diffusers/model_index.json",
        f"{models}/generators/encoder/3-8/model.safetensors",
        f"{models}/generators/encoder/4-9/model.safetensors",
        *(
            f"{models}/oracles/{name}/model.safetensors"
            for name in ("autoencoders", "feature-extractor", "simsiam")
        ),
    }


def test_experiments_of_a_dataset_share_its_models(project: Plan) -> None:
    """Every table of gap-resnet is about one network; what knows no attribute is trained once."""
    for name in ("mirror-cfe-mnist", "cecas-mnist", "eced-mnist", "board-mnist"):
        assert project.classifier_of(Job(experiment=name)) == [
            "results/models/mnist/classifiers/gap-resnet/model.safetensors"
        ]
    faces = [project.experiments[f"cecas-celeba-{name}"] for name in ("smile", "age", "gender")]
    generators = {
        tuple(f for f in map(str, inputs.model_folders(e)) if "/generators/" in f) for e in faces
    }
    assert generators == {
        tuple(
            f"results/models/celeba-subset/generators/{name}/all-classes"
            for name in ("ddpm", "beta-tcvae", "sean")
        )
    } | {g for g in generators if len(g) < 3}
    assert len({e.classifier for e in faces}) == 3
    named = {e.models.name for e in project.experiments.values()}
    assert named <= {*project.models}
    assert "c3lt-imagenet" in named  # which holds its own


def test_inputs_of_shared_and_joint_trainings(project: Plan) -> None:
    name = "mirror-cfe-mnist"
    folder = f"results/{name}/methods"
    for method, model in (
        ("mirror-cfe", "mirror-cfe/4-9"),
        ("mirror-cfe-reflection", "mirror-cfe/4-9"),
        ("mirror-cfe-multi-class", "mirror-cfe-multi-class/all-pairs"),
    ):
        back = Job(experiment=name, method=method, source="9", target="4")
        assert project.method_model(back) == [f"{folder}/{model}/model.safetensors"]
    for scope, method in (("all-pairs", "mirror-cfe-multi-class"), ("4-9", "mirror-cfe")):
        fit = Job(experiment=name, method=method, scope=scope)
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


def test_predictions_are_an_input_where_they_choose_the_queries(project: Plan) -> None:
    predictions = "results/models/mnist/classifiers/gap-resnet/predictions.parquet"
    mirror, plain = (Job(experiment=n) for n in ("mirror-cfe-mnist", "c3lt-mnist"))
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


def test_animations_are_targets_of_their_experiment(project: Plan) -> None:
    name = "mirror-cfe-mnist"
    folders = [
        f"results/{name}/animations/mirror-cfe/mnist/{pair}" for pair in ("3-8", "4-9", "5-6")
    ]
    assert targets.animations(project, name) == folders  # of the first counterfactuals alone
    assert set(folders) < set(targets.experiment_target(project, name))
    wildcards = Job(experiment=name, method="mirror-cfe", scope="4-9")
    stem = f"results/{name}/counterfactuals/mirror-cfe"
    assert project.pair_sets(wildcards) == [
        f"{stem}/{direction}.{suffix}"
        for direction in ("4_to_9", "9_to_4")
        for suffix in ("safetensors", "parquet")
    ]
    e = project.experiments[name]
    none = e.evaluation.model_copy(update={"animations": 0})
    project.experiments[name] = e.model_copy(update={"evaluation": none})
    assert targets.animations(project, name) == [] == targets.animations(project, "c3lt-mnist")


def test_datasets_are_named_with_their_options(project: Plan) -> None:
    hq = Job(dataset="celeba-hq-256")
    assert project.dataset_arguments(hq) == "celeba-hq"  # 256 is the default
    assert project.dataset_arguments(Job(dataset="mnist")) == "mnist"
    subset = Job(dataset="celeba-subset")
    assert project.raw_files(subset) == ["data/raw/celeba-subset/celeba_subset_64.zip"]


def test_pretrained_oracles_are_their_weights(project: Plan) -> None:
    judges = project.metric_oracles(Job(experiment="c3lt-mnist"))
    weights = [name for name in judges if name.startswith("data/weights/")]
    assert (
        weights == [str(layout.weight(weight)) for weight in ("inception-fid",)]
        or len(weights) == 1
    )
    assert "results/models/mnist/oracles/autoencoders/model.safetensors" in judges
    assert not [name for name in judges if "oracles/inception" in name]
    assert set(targets.weights(project, "mnist")) >= set(weights)


def test_all_builds_what_the_project_file_lists(project: Plan) -> None:
    found = targets.all_targets(project)
    for name in project.config.experiments:
        assert f"results/{name}/report.html" in found
        assert f"results/tables/{name}-cost.csv" in found
    for name in project.config.tables:
        assert f"results/tables/{name}.csv" in found
    for name in project.config.figures:
        assert f"results/figures/{name}.png" in found


def test_shards(copied_project: Path) -> None:
    (copied_project / "config/experiments/digits-dcgan.yaml").unlink()  # extends digits
    path = copied_project / "config/experiments/digits.yaml"
    content = yaml.safe_load(path.read_text())
    content["evaluation"] = {"images": 50, "shard_size": 20}
    path.write_text(yaml.safe_dump(content))
    project = Plan({})
    wildcards = Job(experiment="digits", method="pgd", source="9", target="4")
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
            "experiments:\n  - digits\n",
            "experiments:\n  - digit\n",
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
        Plan({})


def test_patterns() -> None:
    assert re.fullmatch(plan.any_of([]), "") is None
    assert re.fullmatch(plan.any_of([]), "any") is None
    assert plan.any_of(["b", "a", "b"]) == "a|b"
    assert Plan.hours(3)(None, 1) == 180 and Plan.hours(3)(None, 2) == 360


def test_the_mirror_reaches_the_jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("COUNTERLENS_MIRROR", "first")
    Plan({"mirror": "second"})
    assert os.environ["COUNTERLENS_MIRROR"] == "first"  # the environment wins
    monkeypatch.delenv("COUNTERLENS_MIRROR")
    Plan({"mirror": "second"})
    assert os.environ["COUNTERLENS_MIRROR"] == "second"


def test_a_table_needs_the_models_of_its_rows_alone(project: Plan) -> None:
    found = project.table_inputs(Job(table="c3lt-table1-mnist"))
    assert "results/c3lt-mnist/methods/c3lt/5-6/card.json" in found
    assert "results/models/mnist/generators/encoder/5-6/card.json" in found
    assert not [name for name in found if "/c3lt-cls" in name or "/c3lt-n3" in name]
    # the rows of the ablation share one pair
    found = project.table_inputs(Job(table="c3lt-table5"))
    assert "results/c3lt-mnist/methods/c3lt-cls/4-9/card.json" in found
    assert not [name for name in found if "5-6" in name or "3-8" in name]


def test_what_a_method_builds_on_is_behind_it(project: Plan) -> None:
    e = project.experiments["cecas-mnist"]
    generators, trained = inputs.trainings(e, ["cecas-alpha-0"], e.pairs)
    assert generators == [("ddpm", "all-classes")]
    assert trained == [("cecas", "all-pairs")]
    assert inputs.trainings(e, ["pgd", "original-data"], e.pairs) == ([], [])


def test_a_board_is_all_about_its_experiments(project: Plan) -> None:
    named = targets.named_targets(project)
    board = named["board-digits"]
    assert set(board) == {*targets.experiment_target(project, "digits")}
    assert "results/tables/board-digits.csv" in board
    for picture in ("proximity", "realism"):
        assert f"results/figures/board-digits-{picture}.png" in board
    assert [table.name for table in project.boards("digits")] == ["board-digits"]
    # the experiment of that name and the table of that name are one target
    assert set(named["board-mnist"]) == {*targets.experiment_target(project, "board-mnist")}
    shown = project.settings("experiment")(Job(experiment="digits"))
    assert '"ranked": true' in shown and "board-digits-realism" in shown


def test_what_a_training_took_is_an_input_of_the_costs(project: Plan) -> None:
    found = project.cost_inputs(Job(experiment="digits"))
    models = "results/timings/models/digits/generators"
    assert f"{models}/vae/all-classes.json" in found
    folder = "results/timings/digits/training"
    assert f"{folder}/c3lt/3-8.json" in found
    assert not any("/pgd/" in name for name in found if name.startswith(folder))
