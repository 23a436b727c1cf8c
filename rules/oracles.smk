rule oracle:
    input:
        data=project.dataset_of,
        code=project.code("oracles/train", "oracle", "classifier"),
    output:
        model="results/models/{models}/oracles/{oracle}/model.safetensors",
        card="results/models/{models}/oracles/{oracle}/card.json",
        training="results/models/{models}/oracles/{oracle}/training.csv",
    log:
        "logs/models/{models}/oracles/{oracle}.log",
    benchmark:
        "benchmarks/models/{models}/oracles/{oracle}.tsv"
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
        settings=project.settings("oracles.{oracle}"),
    message:
        "training the oracle {wildcards.oracle} of {wildcards.models}"
    shell:
        "counterlens oracle --models {wildcards.models} --scale {params.scale}"
        " --oracle {wildcards.oracle}"
        " --gpus {resources.gpu} --threads {threads} > {log} 2>&1"
