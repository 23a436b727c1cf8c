rule generator:
    input:
        data=project.dataset_of,
        classifier=project.classifier_of,
        generators=project.generator_inputs,
        code=project.code("generators/train", "generator", "classifier"),
    output:
        model="results/models/{models}/generators/{generator}/{scope}/model.safetensors",
        card="results/models/{models}/generators/{generator}/{scope}/card.json",
        training="results/models/{models}/generators/{generator}/{scope}/training.csv",
        samples="results/models/{models}/generators/{generator}/{scope}/samples.png",
        timing="results/timings/models/{models}/generators/{generator}/{scope}.json",
    log:
        "logs/models/{models}/generators/{generator}/{scope}.log",
    benchmark:
        "benchmarks/models/{models}/generators/{generator}/{scope}.tsv"
    retries: 2
    conda:
        "../envs/conda.yaml"
    threads: project.generator_threads
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=project.hours(12),
    params:
        scale=project.scale,
        settings=project.settings("generators.{generator}"),
    message:
        "training the generator {wildcards.generator} of {wildcards.models} on {wildcards.scope}"
    shell:
        "counterlens generator --models {wildcards.models} --scale {params.scale}"
        " --generator {wildcards.generator} --scope {wildcards.scope}"
        " --gpus {resources.gpu} --threads {threads} > {log} 2>&1"


rule export:
    input:
        model="results/models/{models}/generators/{generator}/{scope}/model.safetensors",
        code=project.code("generators/export", "generator"),
    output:
        index="results/models/{models}/generators/{generator}/{scope}/diffusers/model_index.json",
        network="results/models/{models}/generators/{generator}/{scope}/diffusers/unet/config.json",
        model="results/models/{models}/generators/{generator}/{scope}/diffusers/unet/diffusion_pytorch_model.safetensors",
        scheduler="results/models/{models}/generators/{generator}/{scope}/diffusers/scheduler/scheduler_config.json",
    log:
        "logs/models/{models}/generators/{generator}/{scope}.export.log",
    benchmark:
        "benchmarks/models/{models}/generators/{generator}/{scope}.export.tsv"
    wildcard_constraints:
        generator=project.diffusion_models(),
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=30,
    params:
        scale=project.scale,
        settings=project.settings("generators.{generator}"),
    message:
        "exporting the diffusion model {wildcards.generator} of {wildcards.models}"
    shell:
        "counterlens export --models {wildcards.models} --scale {params.scale}"
        " --generator {wildcards.generator} --scope {wildcards.scope} > {log} 2>&1"
