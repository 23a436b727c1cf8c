rule fetch:
    input:
        code=project.sources("dataset"),
    output:
        "data/raw/{dataset}/{file}",
    log:
        "logs/data/raw/{dataset}/{file}.log",
    benchmark:
        "benchmarks/data/raw/{dataset}/{file}.tsv"
    wildcard_constraints:
        file=r"[^/]+",
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=60,
    params:
        dataset=project.dataset_arguments,
    message:
        "downloading {wildcards.file} of {wildcards.dataset}"
    shell:
        "counterlens fetch --dataset {params.dataset} --file {wildcards.file}" " > {log} 2>&1"


rule prepare:
    input:
        raw=project.raw_files,
        code=project.code("data/formats/prepare", "dataset"),
    output:
        train="data/prepared/{dataset}/train.safetensors",
        test="data/prepared/{dataset}/test.safetensors",
        card="data/prepared/{dataset}/dataset.json",
    log:
        "logs/data/prepared/{dataset}.log",
    benchmark:
        "benchmarks/data/prepared/{dataset}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        dataset=project.dataset_arguments,
    message:
        "preparing {wildcards.dataset}"
    shell:
        "counterlens prepare --dataset {params.dataset} > {log} 2>&1"


rule weights:
    input:
        code=project.sources("data/formats/weights"),
    output:
        "data/weights/{weight}.json",
    log:
        "logs/data/weights/{weight}.log",
    benchmark:
        "benchmarks/data/weights/{weight}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=60,
    message:
        "downloading the weights {wildcards.weight}, or recording why they cannot be had"
    shell:
        "counterlens weights --weight {wildcards.weight}" " > {log} 2>&1"
