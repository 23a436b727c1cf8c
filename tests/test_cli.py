"""The command line: what each stage calls, and how it ends."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from counterlens import __version__, cli
from counterlens.config import Experiment, Models
from counterlens.errors import UserError
from counterlens.experiments import dataset_options

RULES = sorted(Path(__file__).parents[1].glob("rules/*.smk"))
STAGES = re.findall(r'stage\("([\w-]+)"', Path(cli.__file__).read_text(encoding="utf-8"))


def test_help_does_not_import_torch() -> None:
    script = (
        "import contextlib, io, sys\n"
        "from counterlens.cli import main\n"
        f"for words in ([], *([stage] for stage in {STAGES})):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([*words, '--help'])\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {"fetch", "classifier", "fit", "explain", "original-data", "animations", "check"}
    assert wanted <= set(STAGES)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for stage in STAGES:
        assert re.search(rf"^\s+{stage}\s", shown, re.M)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("words", [[], ["dream"], ["fit"], ["explain", "--experiment", "digits"]])
def test_a_wrong_command_line_exits_with_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2 and "usage: counterlens" in capsys.readouterr().err


# check


def test_check_of_the_shipped_files(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 0
    assert re.fullmatch(
        r"\d+ sets of models, \d+ experiments, \d+ tables and \d+ figures are valid\n",
        capsys.readouterr().out,
    )


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("models/digits", "seed: 85", "sede: 85"),
        ("experiments/digits", "description: ", "sede: "),
    ],
)
def test_check_of_a_mistake(
    file: str, right: str, wrong: str, copied_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied_project / f"config/{file}.yaml"
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    assert cli.main(["check"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"counterlens: error: config/{file}.yaml: ")
    assert "sede: unknown key" in lines[0]


def test_a_module_run_ends_with_the_same_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "counterlens", "check"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "counterlens: error: config/config.yaml: no such file; known: none\n"


# What the stages call


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, root: Path) -> Callable[[str, str], dict[str, Any]]:
    """Replace a stage's function; the dictionary tells what it was called with."""
    from counterlens.runtime import device, gpu_slots, stopwatch

    monkeypatch.setattr(
        stopwatch, "timed", lambda path, threads: nullcontext(order.append(f"timed {path}"))
    )
    monkeypatch.setattr(gpu_slots, "acquire", lambda gpus: order.append(f"gpus {gpus}"))
    monkeypatch.setattr(device, "setup", lambda threads: order.append(f"threads {threads}"))
    order: list[str] = []

    def replace(module: str, function: str) -> dict[str, Any]:
        seen: dict[str, Any] = {"order": order}
        monkeypatch.setattr(
            importlib.import_module(f"counterlens.{module}"),
            function,
            lambda *arguments, **keywords: seen.update(arguments=arguments, keywords=keywords),
        )
        return seen

    return replace


OF_MODELS = [
    ("digits", "classifier --classifier lenet", "classifiers.train", ["lenet"]),
    # nothing is trained of a network that is read from named weights, inline in an experiment
    ("c3lt-imagenet", "classifier --classifier resnet50", "classifiers.adopt", ["resnet50"]),
    ("digits", "oracle --oracle autoencoders", "oracles.train", ["autoencoders"]),
    ("digits", "generator --generator dcgan --scope 4-9", "generators.train", ["dcgan", "4-9"]),
]
OF_AN_EXPERIMENT = [
    ("fit --method c3lt --scope 4-9", "methods.fit", "run", ["c3lt", "4-9"], []),
    (
        "explain --method pgd --source 9 --target 4 --shard 2 --of 3",
        "methods.explain",
        "run",
        ["pgd", 9, 4],
        [("number", 2), ("of", 3)],
    ),
    (
        "explain --method pgd --source 9 --target 4",
        "methods.explain",
        "run",
        ["pgd", 9, 4],
        [("number", 1), ("of", 1)],
    ),
    ("original-data --source 9 --target 4", "methods.explain", "original_data", [9, 4], []),
    (
        "metrics --method pgd --source 9 --target 4",
        "metrics.compute",
        "compute",
        ["pgd", 9, 4],
        [],
    ),
]


@pytest.mark.parametrize(("name", "words", "module", "arguments"), OF_MODELS)
@pytest.mark.parametrize("scale", ["small", "published"])
def test_a_stage_that_trains_a_model(
    name: str,
    words: str,
    module: str,
    arguments: list[object],
    scale: str,
    called: Callable[[str, str], dict[str, Any]],
) -> None:
    seen = called(module, "run")
    rest = ["--models", name, "--scale", scale, "--gpus", "0", "--threads", "3"]
    assert cli.main([*words.split(), *rest]) == 0
    first, *others = seen["arguments"]
    assert isinstance(first, Models) and (first.name, first.scale) == (name, scale)
    assert others == [*arguments, None] and seen["keywords"] == {}
    timed = "timed results/timings/models/digits/generators/dcgan/4-9.json"
    expected = [timed] if module == "generators.train" else []
    assert seen["order"] == ["gpus 0", "threads 3", *expected]


def test_export(called: Callable[[str, str], dict[str, Any]]) -> None:
    seen = called("generators.export", "run")
    words = "export --models digits --generator ddpm --scope all-classes"
    assert cli.main(words.split()) == 0
    models, *others = seen["arguments"]
    assert isinstance(models, Models) and models.scale == "small"  # what config.yaml says
    assert others == ["ddpm", "all-classes"] and seen["order"] == []


@pytest.mark.parametrize(("words", "module", "function", "arguments", "keywords"), OF_AN_EXPERIMENT)
@pytest.mark.parametrize("scale", ["small", "published"])
def test_a_stage_on_a_device(
    words: str,
    module: str,
    function: str,
    arguments: list[object],
    keywords: list[tuple[str, object]],
    scale: str,
    called: Callable[[str, str], dict[str, Any]],
) -> None:
    seen = called(module, function)
    rest = ["--experiment", "digits", "--scale", scale, "--gpus", "0", "--threads", "3"]
    assert cli.main([*words.split(), *rest]) == 0
    first, *others = seen["arguments"]
    assert isinstance(first, Experiment) and (first.name, first.scale) == ("digits", scale)
    # the device (here None) stands last; the GPUs are taken before torch is set up
    assert others == [*arguments, None]
    assert seen["keywords"] == dict(keywords)
    timed = "timed results/timings/digits/training/c3lt/4-9.json"
    expected = [timed] if module == "methods.fit" else []
    assert seen["order"] == ["gpus 0", "threads 3", *expected]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "fit --method dream --scope 4-9",
            "--method dream: the experiment digits has none of that",
        ),
        ("metrics --method dream --source 4 --target 9", "cve, original-data"),
        ("animations --method c3lt --pair 4_9", "'4_9' is not a pair; write two class indices"),
    ],
)
def test_a_name_that_the_experiment_has_not(
    words: str, told: str, called, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [called("methods.fit", "run"), called("reports.animations", "run")]
    assert cli.main([*words.split(), "--experiment", "digits"]) == 2
    shown = capsys.readouterr().err
    assert told in shown and len(shown.splitlines()) == 1
    assert not any("arguments" in seen for seen in stages)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "classifier --models digits --classifier resnet",
            "--classifier resnet: the models digits have none of that name; they have: gap-",
        ),
        ("generator --models digits --generator gan --scope 4-9", "they have: dcgan, encoder, "),
        ("export --models digits --generator gan --scope 4-9", "--generator gan: "),
        ("oracle --models digits --oracle judge", "--oracle judge: the models digits have none"),
        ("oracle --models c3lt-imagenet --oracle judge", "they have: none"),
        ("oracle --models dogs --oracle judge", "config/models/dogs.yaml: no such file; known: "),
    ],
)
def test_a_name_that_the_models_have_not(
    words: str, told: str, called, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [called(f"{m}.train", "run") for m in ("classifiers", "generators", "oracles")]
    assert cli.main(words.split()) == 2
    shown = capsys.readouterr().err
    assert told in shown and len(shown.splitlines()) == 1
    assert not any("arguments" in seen for seen in stages)


@pytest.mark.parametrize(
    ("words", "module", "function", "arguments"),
    [
        ("table --table t", "reports.tables", "run", ("t", "small")),
        ("figure --figure f", "reports.figures", "run", ("f", "small")),
        ("cost --experiment e", "reports.timing", "run", ("e", "small")),
        ("report --experiment e --scale published", "reports.html", "run", ("e", "published")),
        (
            "fetch --dataset mnist --file f.gz --mirror /m",
            "data.formats.fetch",
            "fetch_dataset_file",
            (dataset_options("mnist", []), "f.gz", Path("data/raw/mnist/f.gz"), "/m"),
        ),
        (
            "prepare --dataset fashion-mnist",
            "data.formats.prepare",
            "prepare",
            (
                dataset_options("fashion-mnist", []),
                Path("data/raw/fashion-mnist"),
                Path("data/prepared/fashion-mnist"),
            ),
        ),
        (
            "prepare --dataset celeba --set size=64",
            "data.formats.prepare",
            "prepare",
            (
                dataset_options("celeba", ["size=64"]),
                Path("data/raw/celeba-64"),
                Path("data/prepared/celeba-64"),
            ),
        ),
        (
            "weights --weight w",
            "data.formats.weights",
            "fetch_weight",
            ("w", Path("data/weights/w.json"), None),
        ),
    ],
)
def test_a_stage_without_device(
    words: str,
    module: str,
    function: str,
    arguments: tuple[object, ...],
    called: Callable[[str, str], dict[str, Any]],
) -> None:
    seen = called(module, function)
    assert cli.main(words.split()) == 0
    assert seen["arguments"] == arguments and seen["order"] == []


def test_gather(called: Callable[[str, str], dict[str, Any]]) -> None:
    seen = called("methods.explain", "gather")
    words = "gather --experiment digits --method pgd --source 9 --target 4 --of 3"
    assert cli.main(words.split()) == 0
    assert seen["arguments"][0].scale == "small"  # what config.yaml says
    assert seen["arguments"][1:] == ("pgd", 9, 4, 3) and seen["order"] == []


def test_animations(called: Callable[[str, str], dict[str, Any]]) -> None:
    seen = called("reports.animations", "run")
    words = "animations --experiment digits --method c3lt --pair 4-9"
    assert cli.main(words.split()) == 0
    assert seen["arguments"][0].name == "digits"
    assert seen["arguments"][1:] == ("c3lt", (4, 9)) and seen["order"] == []


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (UserError("data/x: damaged; delete it"), 2, "counterlens: error: data/x: damaged"),
        (KeyboardInterrupt(), 130, "counterlens: stopped"),
    ],
)
def test_how_a_stage_ends(
    error: BaseException,
    code: int,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from counterlens.reports import tables

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(tables, "run", fail)
    assert cli.main(["table", "--table", "t", "--scale", "small"]) == code
    written = capsys.readouterr().err
    assert written.startswith(shown) and len(written.splitlines()) == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from counterlens.reports import tables

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(tables, "run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["table", "--table", "t", "--scale", "small"])


# The rules


def commands() -> list[str]:
    """The shell line of every rule, with its wildcards filled in."""
    fillings = {"source": "4", "target": "9", "scope": "4-9", "shard": "1", "of": "2"}
    fillings |= {"threads": "1", "gpu": "0", "scale": "small", "log": "any.log"}
    found = []
    for path in RULES:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"^    shell:\n((?:        \".*\n)+)", text, re.M):
            line = "".join(re.findall(r'"([^"]*)"', block))
            found.append(re.sub(r"\{(?:\w+\.)?(\w+)\}", lambda m: fillings.get(m[1], "any"), line))
    return found


def test_the_rules_use_the_command_line_as_it_is() -> None:
    lines = commands()
    used = set()
    for line in lines:
        command, log = line.split(" > ")
        assert log == "any.log 2>&1"
        program, stage, *rest = shlex.split(command)
        parsed = cli.parser().parse_args([stage, *rest])
        assert program == "counterlens" and callable(parsed.stage)
        used.add(stage)
    assert set(STAGES) - used == {"check", "record", "bench"}
