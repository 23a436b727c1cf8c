rule classifier:
    input:
        data=project.dataset_of,
        files=project.classifier_files,
        code=project.classifier_code,
    output:
        model="results/{experiment}/classifier/model.safetensors",
        card="results/{experiment}/classifier/card.json",
        training="results/{experiment}/classifier/training.csv",
        predictions="results/{experiment}/classifier/predictions.parquet",
        embeddings="results/{experiment}/classifier/embeddings.safetensors",
    log:
        "logs/{experiment}/classifier.log",
    benchmark:
        "benchmarks/{experiment}/classifier.tsv"
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
        settings=project.classifier_settings,
    message:
        "training the classifier of {wildcards.experiment}"
    shell:
        "counterlens classifier --experiment {wildcards.experiment} --scale {params.scale}"
        " --gpus {resources.gpu} --threads {threads} > {log} 2>&1"
