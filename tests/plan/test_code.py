"""Which code a job depends on."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from counterlens import plugins
from counterlens.errors import UserError
from counterlens.plan import code
from counterlens.plan.plan import Plan
from counterlens.plugins import PACKAGE

from .rules import SOURCES, Job, asked, jobs, rules


def code_of(project: Plan, name: str, job: Job) -> list[str]:
    """The code that a rule asks for a job."""
    body = rules()[name]
    whole = project.sources if "project.sources(" in body else project.code
    return whole(*asked(body, "code|sources"))(job)


def file(section: str, kind: str) -> str:
    return str(SOURCES / section / f"{kind.replace('-', '_')}.py")


def test_every_rule_has_code_as_input() -> None:
    assert len(rules()) > 15
    for name, body in rules().items():
        assert re.search(r"^        code=project\.(code|sources)\(", body, re.M), name
        assert asked(body, "code|sources"), name


def test_the_code_inputs_of_all_rules_cover_the_package(project: Plan) -> None:
    covered: set[str] = set()
    for name, body in rules().items():
        for job in jobs(project, body):
            covered |= set(code_of(project, name, job))
    # plugins that no shipped file names are inputs of whoever names them
    for section in plugins.SECTIONS:
        for kind in plugins.known(section):
            if file(section, kind) not in covered:
                covered |= set(code.code_of([plugins.source_file(section, kind)]))
    # the control part, and what runs before a stage begins
    control = {path for path in PACKAGE.rglob("*.py") if code.is_control(path)}
    around = {PACKAGE / "runtime/gpu_slots.py", PACKAGE / "runtime/stopwatch.py"}
    files = {
        str(SOURCES / path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path not in control | around
    }
    # Files of the package's folders that only mark them as packages hold no code.
    empty = {name for name in files if Path(name).name == "__init__.py" and not _has_code(name)}
    assert files - covered <= empty, "no rule has these files as input"
    assert all(Path(name).is_file() for name in covered)


def _has_code(name: str) -> bool:
    body = ast.parse(Path(name).read_text(encoding="utf-8")).body
    return any(not isinstance(node, ast.Expr) for node in body)


def test_a_job_depends_on_its_own_plugins_only(project: Plan) -> None:
    for rule in ("fit", "explain"):
        for job in jobs(project, rules()[rule]):
            e = project.experiments[job.experiment]
            options = e.methods[job.method]
            needed = set(code_of(project, rule, job))
            others = {file("methods", other) for other in plugins.known("methods")}
            assert needed & others == {file("methods", options.kind)} & others
            assert file("classifiers", e.classifier_options.kind) in needed
            used = {e.generators[generator].kind for generator in options.generators()}
            assert {file("generators", kind) for kind in used} <= needed
            # methods never use what judges them
            assert not any(name.startswith(str(SOURCES / "metrics")) for name in needed)
            assert not any(name.startswith(str(SOURCES / "oracles")) for name in needed)
            assert str(SOURCES / f"methods/{rule}.py") in needed
    for rule in ("classifier", "oracle", "metrics"):
        for job in jobs(project, rules()[rule]):
            needed = set(code_of(project, rule, job))
            assert not any(name.startswith(str(SOURCES / "methods")) for name in needed)
            assert not any(name.startswith(str(SOURCES / "generators")) for name in needed)
    for name, e in project.experiments.items():
        judges = {file("metrics", metric.kind) for metric in e.metrics}
        judges |= {file("oracles", oracle.kind) for oracle in e.oracles.values()}
        recipes = {o.classifier for o in e.oracles.values() if o.classifier}
        judges |= {file("classifiers", e.models.classifiers[each].kind) for each in recipes}
        assert judges <= set(code_of(project, "metrics", Job(experiment=name)))
    fetched = Job(dataset="fashion-mnist")
    assert code_of(project, "fetch", fetched) == [file("data", "fashion-mnist")]


def test_pgd_needs_no_generator(project: Plan) -> None:
    needed = set(code_of(project, "explain", Job(experiment="digits", method="pgd")))
    assert not {file("generators", kind) for kind in plugins.known("generators")} & needed


def test_control_modules_are_inputs_of_the_reports_alone(project: Plan) -> None:
    control = {
        str(SOURCES / path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if code.is_control(path)
    }
    reports = {"found", "table", "figure", "animations", "cost", "report"}
    for name, body in rules().items():
        for job in jobs(project, body):
            assert name in reports or not control & set(code_of(project, name, job))
    shown = code_of(project, "report", Job(experiment="digits"))
    assert str(SOURCES / "plan/inputs.py") in shown
    templates = {name for name in shown if not name.endswith(".py")}
    assert {Path(name).suffix for name in templates} == {".j2", ".css", ".js"}


def test_a_word_that_a_job_has_nothing_of_is_told(project: Plan) -> None:
    with pytest.raises(UserError, match="code: no job of an experiment has a 'generater'"):
        project.code("generater")(Job(experiment="digits", method="pgd"))
    with pytest.raises(UserError, match="code: no training of a model has a 'metrics'"):
        project.code("metrics")(Job(models="digits", classifier="lenet"))


def test_a_user_s_own_method_brings_what_it_imports(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def f():\n    from counterlens.runtime import images\n")
    needed = code.code_of([mine])
    assert str(mine) in needed
    assert str(SOURCES / "runtime/images.py") in needed
    assert str(SOURCES / "runtime/files.py") in needed  # which that imports in turn
    monkeypatch.chdir(tmp_path)
    assert "mine.py" in code.code_of([mine])
