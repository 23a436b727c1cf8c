# Targets by name: each table, figure and experiment, and each group of files that is one stage of
# dvc.yaml. They run nothing themselves.

for target, wanted in project.named_targets().items():

    rule:
        name:
            target
        input:
            wanted,
        localrule: True
