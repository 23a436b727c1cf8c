"""Which files a target of the command stands for."""

from __future__ import annotations

from counterlens.plan import targets
from counterlens.plan.plan import Plan

from .rules import Job


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


def test_all_builds_what_the_project_file_lists(project: Plan) -> None:
    found = targets.all_targets(project)
    for name in project.config.experiments:
        assert f"results/{name}/report.html" in found
        assert f"results/tables/{name}-cost.csv" in found
    for name in project.config.tables:
        assert f"results/tables/{name}.csv" in found
    for name in project.config.figures:
        assert f"results/figures/{name}.png" in found


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
