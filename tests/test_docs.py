"""What the documents promise: data/README.md is the code's, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from counterlens import config, plugins
from counterlens.data.base import Dataset, Source
from counterlens.data.formats.weights import MIRROR_FOLDER, WEIGHTS
from counterlens.experiments import load_experiment, load_models

ROOT = Path(__file__).parents[1]
DATA = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
WORDS = " ".join(DATA.split())
PAGES = [
    *(
        ROOT / name
        for name in (
            "README.md",
            "CONTRIBUTING.md",
            "CHANGELOG.md",
            "config/README.md",
            "data/README.md",
        )
    ),
    *sorted((ROOT / "docs").glob("*.md")),
]
CHECKSUM = re.compile(r"\b(?:md5:[0-9a-f]{32}|[0-9a-f]{64})\b")
LINK = re.compile(r"\]\((?!https?://)([^)\s]+)\)")


def sources(kind: str) -> tuple[Source, ...]:
    """What a kind of dataset downloads."""
    return plugins.implementation("data", kind, Dataset).sources


def documented(title: str, checksum: str, file: str) -> bool:
    """Whether a code block has the checksum and the file under a title, which is not indented."""
    under, files = "", [""]
    for line in "".join(DATA.split("```")[1::2]).splitlines():
        if line and not line.startswith(" "):
            under = line.split(":")[0]
            files = line.split()
        else:
            files = [*files, *line.split()]
        if under == title and {checksum, file} <= {*files}:
            return True
    return False


@pytest.mark.parametrize("kind", plugins.known("data"))
def test_the_data_page_has_every_dataset(kind: str) -> None:
    licence = plugins.options_class("data", kind).licence  # type: ignore[attr-defined]
    row = re.search(rf"^\| `{kind}` \|[^|]+\| (.+) \|$", DATA, re.MULTILINE)
    assert row is not None and row[1] == licence
    for source in sources(kind):
        assert documented(kind, source.sha256, source.file), source.file


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_data_page_has_every_weight(name: str) -> None:
    weight = WEIGHTS[name]
    row = re.search(rf"^\| `{name}` \|[^|]+\| (.+) \|$", DATA, re.MULTILINE)
    assert row is not None and row[1] == weight.licence
    assert documented(name, weight.source.sha256, weight.source.file)


def test_every_checksum_of_the_data_page_is_the_code_s() -> None:
    files = [source for kind in plugins.known("data") for source in sources(kind)]
    files += [weight.source for weight in WEIGHTS.values()]
    assert {*CHECKSUM.findall(DATA)} == {source.sha256 for source in files}
    urls = [url for source in files for url in source.urls]
    for host in re.findall(r"https?://[^\s,;)]+", DATA):
        assert any(url.startswith(host.rstrip(".")) for url in urls), host


def test_the_data_page_tells_the_mirror_s_layout() -> None:
    for line in DATA.split("```")[1].strip().splitlines():
        place, example = line.split()
        folder, file = example.split("/")
        if place.startswith(f"{MIRROR_FOLDER}/"):
            assert file in {weight.source.file for weight in WEIGHTS.values()}
        else:
            assert file in {source.file for source in sources(folder)}
    for kind in plugins.known("data"):
        options = plugins.options_class("data", kind)
        if sources(kind):
            chosen = options.model_validate({"kind": kind})
            folder = chosen.mirror_folder  # type: ignore[attr-defined]
            assert folder in (kind, "celeba")
            assert folder == kind or f"`celeba/` for `celeba` and `{kind}`" in WORDS


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if target.suffix == ".png":
            continue
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


CONFIG = (ROOT / "config" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", CONFIG, re.S)
SHARED = (
    config.Project,
    config.Models,
    config.Experiment,
    config.Evaluation,
    config.Table,
    config.Row,
    config.Claim,
    config.Figure,
    config.ClassifierOptions,
    config.GeneratorOptions,
    config.OracleOptions,
    config.MethodOptions,
    config.MetricOptions,
)


@pytest.mark.parametrize("model", SHARED, ids=lambda model: model.__name__)
def test_the_config_page_has_every_key(model: type[config.Model]) -> None:
    keys = {*re.findall(r"([a-z_]+):", CONFIG), *re.findall(r"`([a-z_]+):?`", CONFIG)}
    missing = {*model.model_fields} - keys
    assert missing <= {"scale"} if model is config.Models else not missing


def test_the_examples_of_the_config_page_are_accepted(copied_project: Path) -> None:
    """Each block that names its file is loaded as that file, at both scales."""
    named = {m[1]: block for block in BLOCKS if (m := re.match(r"# config/(\S+)\n", block))}
    assert len(named) == 3
    for file, block in named.items():
        (copied_project / "config" / file).write_text(block, encoding="utf-8")
    for scale in ("small", "published"):
        for file in named:
            folder, name = file.removesuffix(".yaml").split("/")
            load = load_models if folder == "models" else load_experiment
            assert load(name, scale).name == name  # type: ignore[arg-type]
    for folder, key, load in (
        ("tables", "rows:", config.load_table),
        ("figures", "directions: [[", config.load_figure),
    ):
        (block,) = [block for block in BLOCKS if re.search(f"^{re.escape(key)}", block, re.M)]
        (copied_project / "config" / folder / "shown.yaml").write_text(block, encoding="utf-8")
        assert load("shown").title.startswith("C3LT")
    (settings,) = [block for block in BLOCKS if "mirror:" in block]
    (copied_project / "config/config.yaml").write_text(settings, encoding="utf-8")
    assert config.load_project().tables == ("c3lt-table1-mnist",)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_wrapped_at_100(page: Path) -> None:
    for line in page.read_text(encoding="utf-8").splitlines():
        assert len(line) <= 100 or line.startswith("|") or "](" in line, line
