rule metrics:
    input:
        data=project.dataset_of,
        classifier=project.classifier_of,
        oracles=project.metric_oracles,
        images="results/{experiment}/counterfactuals/{method}/{source}_to_{target}.safetensors",
        table="results/{experiment}/counterfactuals/{method}/{source}_to_{target}.parquet",
        code=project.code("metrics/compute", "metrics", "oracles", "classifier"),
    output:
        summary="results/{experiment}/metrics/{method}/{source}_to_{target}.json",
        images="results/{experiment}/metrics/{method}/{source}_to_{target}.parquet",
    log:
        "logs/{experiment}/metrics/{method}/{source}_to_{target}.log",
    benchmark:
        "benchmarks/{experiment}/metrics/{method}/{source}_to_{target}.tsv"
    wildcard_constraints:
        method=project.any_row(),
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=6000,
        runtime=project.hours(2),
    params:
        scale=project.scale,
        settings=project.settings("metrics"),
    message:
        "judging {wildcards.source} to {wildcards.target} by {wildcards.method}"
        " ({wildcards.experiment})"
    shell:
        "counterlens metrics --experiment {wildcards.experiment} --scale {params.scale}"
        " --method {wildcards.method}"
        " --source {wildcards.source} --target {wildcards.target}"
        " --gpus {resources.gpu} --threads {threads} > {log} 2>&1"


rule metrics_of_pair:
    input:
        data=project.dataset_of,
        classifier=project.classifier_of,
        oracles=project.metric_oracles,
        sets=project.pair_sets,
        code=project.code("metrics/compute", "metrics", "oracles", "classifier"),
    output:
        "results/{experiment}/metrics/{method}/{scope}.json",
    log:
        "logs/{experiment}/metrics/{method}/{scope}.log",
    benchmark:
        "benchmarks/{experiment}/metrics/{method}/{scope}.tsv"
    wildcard_constraints:
        method=project.any_row(),
        scope=r"\d+-\d+",
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=6000,
        runtime=project.hours(2),
    params:
        scale=project.scale,
        settings=project.settings("metrics"),
    message:
        "judging both directions of {wildcards.scope} by {wildcards.method}"
        " ({wildcards.experiment})"
    shell:
        "counterlens metrics --experiment {wildcards.experiment} --scale {params.scale}"
        " --method {wildcards.method} --pair {wildcards.scope}"
        " --gpus {resources.gpu} --threads {threads} > {log} 2>&1"
