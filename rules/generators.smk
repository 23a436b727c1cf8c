rule generator:
    input:
        data=project.dataset_of,
        classifier="results/{experiment}/classifier/model.safetensors",
        generators=project.generator_inputs,
        code=project.generator_code,
    output:
        model="results/{experiment}/generators/{generator}/{scope}/model.safetensors",
        card="results/{experiment}/generators/{generator}/{scope}/card.json",
        training="results/{experiment}/generators/{generator}/{scope}/training.csv",
        samples="results/{experiment}/generators/{generator}/{scope}/samples.png",
        timing="results/timings/{experiment}/training/generators/{generator}/{scope}.json",
    log:
        "logs/{experiment}/generators/{generator}/{scope}.log",
    benchmark:
        "benchmarks/{experiment}/generators/{generator}/{scope}.tsv"
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
        settings=project.generator_settings,
    message:
        "training the generator {wildcards.generator} of {wildcards.experiment}"
        " on {wildcards.scope}"
    shell:
        "counterlens generator --experiment {wildcards.experiment} --scale {params.scale}"
        " --generator {wildcards.generator} --scope {wildcards.scope}"
        " --gpus {resources.gpu} --threads {threads} > {log} 2>&1"


rule export:
    input:
        model="results/{experiment}/generators/{generator}/{scope}/model.safetensors",
        code=project.export_code,
    output:
        index="results/{experiment}/generators/{generator}/{scope}/diffusers/model_index.json",
        network="results/{experiment}/generators/{generator}/{scope}/diffusers/unet/config.json",
        model="results/{experiment}/generators/{generator}/{scope}/diffusers/unet/diffusion_pytorch_model.safetensors",
        scheduler="results/{experiment}/generators/{generator}/{scope}/diffusers/scheduler/scheduler_config.json",
    log:
        "logs/{experiment}/generators/{generator}/{scope}.export.log",
    benchmark:
        "benchmarks/{experiment}/generators/{generator}/{scope}.export.tsv"
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
        settings=project.generator_settings,
    message:
        "exporting the diffusion model {wildcards.generator} of {wildcards.experiment}"
    shell:
        "counterlens export --experiment {wildcards.experiment} --scale {params.scale}"
        " --generator {wildcards.generator} --scope {wildcards.scope} > {log} 2>&1"
