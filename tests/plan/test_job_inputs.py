"""Which files, models above all, a job takes from other jobs."""

from __future__ import annotations

from counterlens import layout
from counterlens.plan import inputs, targets
from counterlens.plan.plan import Plan

from .rules import Job


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


def test_what_a_training_took_is_an_input_of_the_costs(project: Plan) -> None:
    found = project.cost_inputs(Job(experiment="digits"))
    models = "results/timings/models/digits/generators"
    assert f"{models}/vae/all-classes.json" in found
    folder = "results/timings/digits/training"
    assert f"{folder}/c3lt/3-8.json" in found
    assert not any("/pgd/" in name for name in found if name.startswith(folder))
