# Results have one label each: Snakemake's report shows nothing of two that differ in a second one.


rule found:
    input:
        tables=project.found_inputs,
        code=project.code("reports/found"),
    output:
        table="results/{experiment}/found/{source}_to_{target}.parquet",
        counts="results/{experiment}/found/{source}_to_{target}.json",
    log:
        "logs/{experiment}/found/{source}_to_{target}.log",
    benchmark:
        "benchmarks/{experiment}/found/{source}_to_{target}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        scale=project.scale,
        settings=project.settings("filters"),
    message:
        "recording what was found from {wildcards.source} to {wildcards.target}"
        " ({wildcards.experiment})"
    shell:
        "counterlens found --experiment {wildcards.experiment} --scale {params.scale}"
        " --source {wildcards.source} --target {wildcards.target} > {log} 2>&1"


rule table:
    input:
        metrics=project.table_inputs,
        code=project.code("reports/tables"),
    output:
        csv="results/tables/{table}.csv",
        markdown="results/tables/{table}.md",
        latex="results/tables/{table}.tex",
        html=report(
            "results/tables/{table}.html",
            caption="captions/table.rst",
            category="Tables",
            subcategory=lambda wildcards: ", ".join(project.tables[wildcards.table].experiments),
            labels=lambda wildcards: {
                "table": f"{project.tables[wildcards.table].title} ({wildcards.table})"
            },
        ),
        json="results/tables/{table}.json",
    log:
        "logs/tables/{table}.log",
    benchmark:
        "benchmarks/tables/{table}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        scale=project.scale,
        settings=project.settings("tables.{table}"),
    message:
        "building the table {wildcards.table}"
    shell:
        "counterlens table --table {wildcards.table} --scale {params.scale} > {log} 2>&1"


rule figure:
    input:
        sets=project.figure_inputs,
        code=project.code("reports/figures"),
    output:
        report(
            "results/figures/{figure}.png",
            caption="captions/figure.rst",
            category="Figures",
            subcategory=lambda wildcards: project.figures[wildcards.figure].experiment,
            labels=lambda wildcards: {
                "figure": f"{project.figures[wildcards.figure].title} ({wildcards.figure})"
            },
        ),
    log:
        "logs/figures/{figure}.log",
    benchmark:
        "benchmarks/figures/{figure}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        scale=project.scale,
        settings=project.settings("figures.{figure}"),
    message:
        "drawing the figure {wildcards.figure}"
    shell:
        "counterlens figure --figure {wildcards.figure} --scale {params.scale} > {log} 2>&1"


rule animations:
    input:
        sets=project.pair_sets,
        code=project.code("reports/animations"),
    output:
        report(
            directory("results/{experiment}/animations/{method}/{dataset}/{scope}"),
            patterns=["{name}.mp4"],
            caption="captions/animation.rst",
            category="Animations",
            subcategory="{experiment}, {method}, {scope}",
            labels={"film": "{name}"},
        ),
    log:
        "logs/{experiment}/animations/{method}/{dataset}/{scope}.log",
    benchmark:
        "benchmarks/{experiment}/animations/{method}/{dataset}/{scope}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        scale=project.scale,
        settings=project.settings("evaluation"),
    message:
        "animating {wildcards.method} on {wildcards.scope} ({wildcards.experiment})"
    shell:
        "counterlens animations --experiment {wildcards.experiment} --scale {params.scale}"
        " --method {wildcards.method} --pair {wildcards.scope} > {log} 2>&1"


rule cost:
    input:
        timings=project.cost_inputs,
        code=project.code("reports/timing"),
    output:
        csv="results/tables/{experiment}-cost.csv",
        markdown="results/tables/{experiment}-cost.md",
    log:
        "logs/tables/{experiment}-cost.log",
    benchmark:
        "benchmarks/tables/{experiment}-cost.tsv"
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        scale=project.scale,
    message:
        "gathering what the methods cost of {wildcards.experiment}"
    shell:
        "counterlens cost --experiment {wildcards.experiment} --scale {params.scale}"
        " > {log} 2>&1"


rule report:
    input:
        artifacts=project.report_inputs,
        code=project.code("reports/html"),
    output:
        report(
            "results/{experiment}/report.html",
            caption="captions/report.rst",
            category="Reports",
            labels={"experiment": "{experiment}"},
        ),
    log:
        "logs/{experiment}/report.log",
    benchmark:
        "benchmarks/{experiment}/report.tsv"
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=20,
    params:
        scale=project.scale,
        settings=project.settings("experiment"),
    message:
        "writing the report of {wildcards.experiment}"
    shell:
        "counterlens report --experiment {wildcards.experiment} --scale {params.scale}"
        " > {log} 2>&1"
