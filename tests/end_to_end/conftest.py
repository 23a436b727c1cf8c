"""A tiny project on the real digits, built once and copied into every test that needs it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("Snakefile", "rules", "src", "config", "profiles", "envs", ".dvc", ".dvcignore")
COPIED += (".gitignore", "dvc.yaml", "pyproject.toml")
RECORDED = ("data/prepared", "results/models", "results/digits", "results/figures")
NOTHING_TO_DO = "Nothing to be done"
NO_CHECKPOINT_PAUSE = ("seconds: float = 30.0", "seconds: float = 0.0")

MODELS = """\
dataset: digits
seed: 3
classifiers:
  lenet: {epochs: 3, batch_size: 64}
generators:
  dcgan: {latent_dim: 8, width: 4, epochs: 20, batch_size: 64}
  encoder: {kind: dcgan-encoder, generator: dcgan, latent_dim: 8, width: 4, epochs: 3}
oracles:
  autoencoders: {classes: [3, 8], class_epochs: 1, all_epochs: 1}
"""
EXPERIMENT = """\
name: digits
models: digits
classifier: lenet
pairs: [[3, 8]]
methods:
  c3lt: {generator: dcgan, encoder: encoder, epochs: 3, batch_size: 64}
  pgd: {epsilon: 64/255, step_size: 8/255, steps: 9}
metrics:
  - validity
  - proximity
  - {kind: cout, steps: 4}
  - {kind: im, autoencoders: autoencoders}
evaluation: {images: 12, batch_size: 8}
small:
  methods:
    pgd: {steps: 5}
"""
TABLE = """\
title: A small table
paper: none
rows:
  - {method: c3lt, label: C3LT}
  - {method: pgd, label: PGD}
  - {method: original-data, label: Original data}
columns: [validity, cout, im1]
experiments: [digits]
"""
ABLATION = """\
title: The attack alone
paper: none
rows: [{method: pgd, label: PGD}]
columns: [validity]
experiments: [digits]
"""
FIGURE = """\
title: A small gallery
paper: none
kind: gallery
experiment: digits
methods: [c3lt, pgd]
directions: [[3, 8]]
"""
SETTINGS = """\
scale: small
threads: 1
models: [digits]
experiments: [digits]
tables: [c3lt-table1]
figures: [digits-gallery]
"""


@dataclass(frozen=True)
class Project:
    """A project folder, and the tools run inside it as a user would."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        """The tools of this interpreter, the folder's own package, one thread per job."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SNAKEMAKE_", "GIT_"))}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.path / "src"),
            "OMP_NUM_THREADS": "1",
            "SMK_ARGS": "--cores 2 --resources gpu=2",
            "DVC_NO_ANALYTICS": "1",
        }

    def run(self, *words: str, fails: bool = False) -> str:
        """Run a command and return what it printed; its success must be as expected."""
        done = subprocess.run(
            words,
            cwd=self.path,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert (done.returncode != 0) == fails, f"{' '.join(words)}: {done.stdout[-4000:]}"
        return done.stdout

    def snakemake(self, *words: str, fails: bool = False) -> str:
        """Run the workflow, two jobs at a time."""
        return self.run("snakemake", *words, "--cores", "2", "--resources", "gpu=2", fails=fails)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start the workflow as the leader of its own group of processes."""
        return subprocess.Popen(
            ["snakemake", *words, "--cores", "2", "--resources", "gpu=2"],
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def jobs(self, *words: str) -> list[str]:
        """The jobs of a dry run by their log files, e.g. `digits/metrics/pgd/3_to_8`, sorted."""
        text = self.snakemake(*words, "--dry-run", "--printshellcmds")
        found = re.findall(r"\bcounterlens [^\n]* > logs/(\S+)\.log 2>&1", text)
        assert (not found) == (NOTHING_TO_DO in text), text
        return sorted(found)

    def dvc(self, *words: str, fails: bool = False) -> str:
        """Run DVC."""
        return self.run("dvc", *words, fails=fails)

    def git(self, *words: str) -> str:
        """Run git as somebody."""
        return self.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", *words)

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that stands in a file exactly once."""
        path = self.path / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file}: '{old}' stands there {text.count(old)} times"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def append(self, file: str, text: str) -> None:
        """Add to the end of a file."""
        with (self.path / file).open("a", encoding="utf-8") as stream:
            stream.write(text)

    def results(self, *folders: str) -> dict[str, bytes]:
        """The content of every reproducible result, or of those in some folders."""
        found = {}
        for folder in folders or RECORDED:
            for path in sorted((self.path / folder).rglob("*")):
                if path.is_file():
                    found[path.relative_to(self.path).as_posix()] = path.read_bytes()
        for path in (self.path / "results/tables").glob("c3lt-table*.csv"):
            found[path.relative_to(self.path).as_posix()] = path.read_bytes()
        return found

    def assert_same(self, other: Project, *folders: str) -> None:
        """Both have the same results with the same bytes."""
        mine, theirs = self.results(*folders), other.results(*folders)
        assert mine
        assert sorted(mine) == sorted(theirs)
        assert not [name for name in mine if mine[name] != theirs[name]]

    def clone(self, place: Path) -> Project:
        """A copy of the folder, with all that was built in it."""
        shutil.copytree(self.path, place, symlinks=True)
        return Project(place)


def copy_sources(place: Path) -> Project:
    """The project as it is shipped, without anything built."""
    place.mkdir(parents=True)
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", "cache", "tmp", "config.local")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=unwanted)
        else:
            shutil.copy(source, place / name)
    return Project(place)


def make_tiny(place: Path) -> Project:
    """The project with one tiny experiment, two tables and a figure; checkpoints every epoch."""
    project = copy_sources(place)
    shutil.rmtree(place / "config")
    for file, text in {
        "config.yaml": SETTINGS,
        "models/digits.yaml": MODELS,
        "experiments/digits.yaml": EXPERIMENT,
        "tables/c3lt-table1.yaml": TABLE,
        "tables/c3lt-table5.yaml": ABLATION,
        "figures/digits-gallery.yaml": FIGURE,
    }.items():
        path = place / "config" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    project.edit("src/counterlens/runtime/training.py", *NO_CHECKPOINT_PAUSE)
    return project


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project as it is shipped; nothing is built, only dry runs are made."""
    return copy_sources(tmp_path_factory.mktemp("shipped") / "project")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny project, built once for all workers; tests copy it and leave it as it is."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    place = shared / "built"
    with (shared / "built.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            started = make_tiny(shared / "building")
            started.snakemake("all")
            started.path.rename(place)
    return Project(place)


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """A copy of the built tiny project, to be changed at will."""
    return built.clone(tmp_path / "project")


@pytest.fixture
def unbuilt(tmp_path: Path) -> Callable[[], Project]:
    """Makes tiny projects with nothing built."""
    count = iter(range(1000))
    return lambda: make_tiny(tmp_path / f"unbuilt{next(count)}")
