rule classifier:
    input:
        data=project.dataset_of,
        files=project.classifier_files,
        code=project.code("classifiers/train", "classifiers/adopt", "classifier"),
    output:
        model="results/models/{models}/classifiers/{classifier}/model.safetensors",
        card="results/models/{models}/classifiers/{classifier}/card.json",
        training="results/models/{models}/classifiers/{classifier}/training.csv",
        predictions="results/models/{models}/classifiers/{classifier}/predictions.parquet",
        embeddings="results/models/{models}/classifiers/{classifier}/embeddings.safetensors",
    log:
        "logs/models/{models}/classifiers/{classifier}.log",
    benchmark:
        "benchmarks/models/{models}/classifiers/{classifier}.tsv"
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
        settings=project.settings("classifiers.{classifier}"),
    message:
        "training the classifier {wildcards.classifier} of {wildcards.models}"
    shell:
        "counterlens classifier --models {wildcards.models} --scale {params.scale}"
        " --classifier {wildcards.classifier}"
        " --gpus {resources.gpu} --threads {threads} > {log} 2>&1"
