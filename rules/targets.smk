# Targets by name: each table, figure and experiment, the models and the data of each dataset. They
# run nothing themselves. `snakemake --list-targets` shows them.

for target, wanted in targets.named_targets(project).items():

    rule:
        name:
            target
        input:
            wanted,
        localrule: True
