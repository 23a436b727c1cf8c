rule oracle:
    input:
        data=project.dataset_of,
        code=project.oracle_code,
    output:
        model="results/{experiment}/oracles/{oracle}/model.safetensors",
        card="results/{experiment}/oracles/{oracle}/card.json",
        training="results/{experiment}/oracles/{oracle}/training.csv",
    log:
        "logs/{experiment}/oracles/{oracle}.log",
    benchmark:
        "benchmarks/{experiment}/oracles/{oracle}.tsv"
    retries: 2
    conda:
        "../envs/conda.yaml"
    threads: config["threads"]
    resources:
        gpu=1,
        mem_mb=6000,
        runtime=project.hours(2),
    params:
        scale=project.scale,
        settings=project.oracle_settings,
    message:
        "training the oracle {wildcards.oracle} of {wildcards.experiment}"
    shell:
        "counterlens oracle --experiment {wildcards.experiment} --scale {params.scale}"
        " --oracle {wildcards.oracle}"
        " --gpus {resources.gpu} --threads {threads} > {log} 2>&1"
