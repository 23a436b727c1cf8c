rule fit:
    input:
        data=project.dataset_of,
        classifier=project.classifier_of,
        generators=project.method_generators,
        code=project.code("methods/fit", "method", "generators", "classifier"),
    output:
        model="results/{experiment}/methods/{method}/{scope}/model.safetensors",
        card="results/{experiment}/methods/{method}/{scope}/card.json",
        training="results/{experiment}/methods/{method}/{scope}/training.csv",
        timing="results/timings/{experiment}/training/{method}/{scope}.json",
    log:
        "logs/{experiment}/methods/{method}/{scope}.log",
    benchmark:
        "benchmarks/{experiment}/methods/{method}/{scope}.tsv"
    retries: 2
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=project.hours(12),
    params:
        scale=project.scale,
        settings=project.settings("methods.{method}.training"),
    message:
        "training {wildcards.method} of {wildcards.experiment} on {wildcards.scope}"
    shell:
        "counterlens fit --experiment {wildcards.experiment} --scale {params.scale}"
        " --method {wildcards.method} --scope {wildcards.scope}"
        " --gpus {resources.gpu} --threads {threads} > {log} 2>&1"


rule explain:
    input:
        data=project.dataset_of,
        classifier=project.classifier_of,
        predictions=project.explained_predictions,
        generators=project.method_generators,
        model=project.method_model,
        earlier=project.earlier_sets,
        code=project.code("methods/explain", "method", "generators", "classifier"),
    output:
        images="results/{experiment}/counterfactuals/{method}/{source}_to_{target}.safetensors",
        table="results/{experiment}/counterfactuals/{method}/{source}_to_{target}.parquet",
        preview="results/{experiment}/counterfactuals/{method}/{source}_to_{target}.png",
        timing="results/timings/{experiment}/{method}/{source}_to_{target}.json",
    log:
        "logs/{experiment}/counterfactuals/{method}/{source}_to_{target}.log",
    benchmark:
        "benchmarks/{experiment}/counterfactuals/{method}/{source}_to_{target}.tsv"
    wildcard_constraints:
        experiment=project.sharded(False),
    retries: 1
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=6000,
        runtime=project.hours(6),
    params:
        scale=project.scale,
        settings=project.settings("methods.{method}", "evaluation"),
    message:
        "explaining {wildcards.source} to {wildcards.target} by {wildcards.method}"
        " ({wildcards.experiment})"
    shell:
        "counterlens explain --experiment {wildcards.experiment} --scale {params.scale}"
        " --method {wildcards.method}"
        " --source {wildcards.source} --target {wildcards.target}"
        " --gpus {resources.gpu} --threads {threads} > {log} 2>&1"


rule explain_shard:
    input:
        data=project.dataset_of,
        classifier=project.classifier_of,
        predictions=project.explained_predictions,
        generators=project.method_generators,
        model=project.method_model,
        earlier=project.earlier_sets,
        code=project.code("methods/explain", "method", "generators", "classifier"),
    output:
        images=temp(
            "results/{experiment}/counterfactuals/{method}/shards/{source}_to_{target}.{shard}-of-{of}.safetensors"
        ),
        table=temp(
            "results/{experiment}/counterfactuals/{method}/shards/{source}_to_{target}.{shard}-of-{of}.parquet"
        ),
        timing=temp(
            "results/timings/{experiment}/{method}/{source}_to_{target}.{shard}-of-{of}.json"
        ),
    log:
        "logs/{experiment}/counterfactuals/{method}/{source}_to_{target}.{shard}-of-{of}.log",
    benchmark:
        "benchmarks/{experiment}/counterfactuals/{method}/{source}_to_{target}.{shard}-of-{of}.tsv"
    retries: 1
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=6000,
        runtime=project.hours(6),
    params:
        scale=project.scale,
        settings=project.settings("methods.{method}", "evaluation"),
    message:
        "explaining {wildcards.source} to {wildcards.target} by {wildcards.method}"
        " ({wildcards.experiment}), shard {wildcards.shard} of {wildcards.of}"
    shell:
        "counterlens explain --experiment {wildcards.experiment} --scale {params.scale}"
        " --method {wildcards.method}"
        " --source {wildcards.source} --target {wildcards.target}"
        " --shard {wildcards.shard} --of {wildcards.of}"
        " --gpus {resources.gpu} --threads {threads} > {log} 2>&1"


rule gather:
    input:
        shards=project.shards,
        code=project.code("methods/explain"),
    output:
        images="results/{experiment}/counterfactuals/{method}/{source}_to_{target}.safetensors",
        table="results/{experiment}/counterfactuals/{method}/{source}_to_{target}.parquet",
        preview="results/{experiment}/counterfactuals/{method}/{source}_to_{target}.png",
        timing="results/timings/{experiment}/{method}/{source}_to_{target}.json",
    log:
        "logs/{experiment}/counterfactuals/{method}/{source}_to_{target}.gather.log",
    benchmark:
        "benchmarks/{experiment}/counterfactuals/{method}/{source}_to_{target}.gather.tsv"
    wildcard_constraints:
        experiment=project.sharded(True),
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=6000,
        runtime=30,
    params:
        scale=project.scale,
        of=project.shard_count,
    message:
        "joining {wildcards.source} to {wildcards.target} by {wildcards.method}"
        " ({wildcards.experiment})"
    shell:
        "counterlens gather --experiment {wildcards.experiment} --scale {params.scale}"
        " --method {wildcards.method}"
        " --source {wildcards.source} --target {wildcards.target}"
        " --of {params.of} > {log} 2>&1"


rule original_data:
    input:
        data=project.dataset_of,
        classifier=project.classifier_of,
        code=project.code("methods/explain", "classifier"),
    output:
        images="results/{experiment}/counterfactuals/original-data/{source}_to_{target}.safetensors",
        table="results/{experiment}/counterfactuals/original-data/{source}_to_{target}.parquet",
        preview="results/{experiment}/counterfactuals/original-data/{source}_to_{target}.png",
    log:
        "logs/{experiment}/counterfactuals/original-data/{source}_to_{target}.log",
    benchmark:
        "benchmarks/{experiment}/counterfactuals/original-data/{source}_to_{target}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        scale=project.scale,
        settings=project.settings("evaluation"),
    message:
        "collecting real images of class {wildcards.target} ({wildcards.experiment})"
    shell:
        "counterlens original-data --experiment {wildcards.experiment} --scale {params.scale}"
        " --source {wildcards.source} --target {wildcards.target}"
        " --gpus 0 --threads {threads} > {log} 2>&1"
