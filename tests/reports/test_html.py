"""The report: complete, self-contained, escaped, the same bytes twice."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from counterlens import cli, layout
from counterlens.config import Evaluation
from counterlens.experiments import load_experiment
from counterlens.plan import inputs
from counterlens.reports import gallery, html, page
from counterlens.runtime import files

Make = Callable[..., Any]
EVIL = "<script>alert(1)</script>\"'"
VOID = {"meta", "link", "img", "input", "br"}


class Reader(HTMLParser):
    """Collects elements and complains of tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def embedded(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found.group(1))


def test_every_method_direction_and_column_is_shown(make: Make) -> None:
    made = make()
    text = html.render(made.experiment)
    reader = Reader(text)
    methods = [a["data-method"] for a in reader.all("div") if "data-method" in a]
    assert methods.count("c3lt") == methods.count("pgd") == 6 * 12
    assert methods.count("c3lt-cls") == 2 * 12
    assert len([a for a in reader.all("button") if a.get("role") == "tab"]) == 6
    assert len([a for a in reader.all("article")]) == 6 * 12
    for label in ("Val", "COUT", "IM2", "FID", "KID", "original-data", "98.50 %", "Seed", "small"):
        assert label in text
    assert "confident_samples is 0.5, must be at least 0.6" in text
    assert "Only 5→6, 6→5" in text
    assert "counterlens fit --experiment toy --scale small --method c3lt --scope 4-9" in text
    assert "snakemake results/toy/report.html" in text


def test_opens_offline(make: Make) -> None:
    reader = Reader(html.render(make(pairs=((4, 9),)).experiment))
    for _, attributes in reader.elements:
        for name in ("src", "href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#"))
    assert not any("url(" in (a.get("style") or "") for _, a in reader.elements)
    style = (page.FOLDER / "report.css").read_text()
    assert "url(" not in style and "@import" not in style


def test_each_distinct_image_is_embedded_once(make: Make) -> None:
    text = html.render(make().experiment)
    reader = Reader(text)
    inline = {a["id"]: a["src"] for a in reader.all("img") if a.get("id")}
    frames = [f"data:image/png;base64,{frame}" for frame in embedded(text)["frames"]]
    sources = [*inline.values(), *frames]
    assert len(sources) == len(set(sources)) > 100
    for reference in (a["data-copy"] for a in reader.all("img") if "data-copy" in a):
        assert reference in inline


def test_an_image_shown_twice_refers_to_its_first_use(make: Make) -> None:
    made = make(pairs=((4, 9),))
    sets = {
        method: layout.counterfactuals("toy", method, 4, 9).with_suffix(".safetensors")
        for method in ("c3lt", "pgd")
    }
    tensors, same = (files.load_tensors(path) for path in (sets["pgd"], sets["c3lt"]))
    same = {**tensors, "counterfactual": same["counterfactual"]}
    files.save_tensors(sets["pgd"], same, files.read_metadata(sets["pgd"]))
    images = Reader(html.render(made.experiment)).all("img")
    first = {a["id"] for a in images if a.get("id")}
    repeated = [
        a["data-copy"]
        for a in images
        if "answer-picture" in str(a.get("class")) and "data-copy" in a
    ]
    assert len(repeated) >= 12
    assert set(repeated) <= first


def test_pictures_are_the_images(make: Make) -> None:
    made = make(pairs=((4, 9),), channels=3)
    reader = Reader(html.render(made.experiment))
    tensors = files.load_tensors(
        layout.counterfactuals("toy", "c3lt", 4, 9).with_suffix(".safetensors")
    )
    first = next(a for a in reader.all("img") if a.get("id"))
    assert first["src"] is not None
    picture = Image.open(io.BytesIO(base64.b64decode(first["src"].split(",")[1])))
    expected = np.rint(tensors["query"][0] * 255).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(picture), expected)


def test_paths_have_sliders_and_confidences(make: Make) -> None:
    made = make(pairs=((4, 9),), steps=4)
    text = html.render(made.experiment)
    data = embedded(text)
    ranges = [a for a in Reader(text).all("input") if a.get("type") == "range"]
    assert len(ranges) == len(data["paths"]) == 2 * 12 * 2  # c3lt and c3lt-cls, two directions
    assert all(a["aria-label"] and a["max"] == a["value"] == "3" for a in ranges)
    for path in data["paths"].values():
        assert len(path["frames"]) == len(path["source"]) == len(path["target"]) == 4
        assert (path["at"], path["position"], path["intended"]) == (3, None, None)
    table = pd.read_parquet(layout.counterfactuals("toy", "c3lt", 4, 9).with_suffix(".parquet"))
    assert data["paths"]["p0"]["target"] == pytest.approx(
        np.asarray(table["path_target_probability"].iloc[0]), abs=1e-4
    )


def test_a_path_that_goes_beyond_starts_at_its_counterfactual(make: Make) -> None:
    made = make(pairs=((4, 9),), steps=9, mirror=True)
    text = html.render(made.experiment)
    reader, data = Reader(text), embedded(text)
    sliders = [
        a
        for a in reader.all("input")
        if a.get("type") == "range" and str(a["aria-label"]).startswith("Path of mirror-cfe ")
    ]
    tiles = [a for a in reader.all("div") if a.get("data-method") == "mirror-cfe"]
    assert len(sliders) == len(tiles) == 2 * 12
    paths = [data["paths"][tile["data-path"]] for tile in tiles]
    assert len({path["at"] for path in paths}) > 1
    assert [str(path["at"]) for path in paths] == [a["value"] for a in sliders]
    assert all(a["max"] == "8" for a in sliders)
    stem = layout.counterfactuals("toy", "mirror-cfe", 4, 9)
    tensors = files.load_tensors(stem.with_suffix(".safetensors"))
    first, steps = paths[0], np.linspace(0, 1, 9)
    assert 0 < first["at"] < 8
    assert steps[first["at"]] == pytest.approx(tensors["position"][0])
    assert first["position"] == pytest.approx(steps, abs=1e-4)
    for role, label in (("source", 4), ("target", 9)):
        intended = tensors["path_intended"][0, :, label]
        assert first["intended"][role] == pytest.approx(intended, abs=1e-4)
    # the picture there is the counterfactual's, which the page already shows
    images = reader.all("img")
    (there,) = [a["src"] for a in images if a.get("id") == first["frames"][first["at"]]]
    picture = Image.open(io.BytesIO(base64.b64decode(str(there).split(",")[1])))
    expected = np.rint(tensors["counterfactual"][0, 0] * 255).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(picture), expected)


def test_only_images_with_a_kept_path_are_chosen(make: Make) -> None:
    made = make(pairs=((4, 9),))
    for direction in ((4, 9), (9, 4)):
        stem = layout.counterfactuals("toy", "c3lt", *direction)
        tensors = files.load_tensors(stem.with_suffix(".safetensors"))
        tensors["path"] = tensors["path"][:5]
        files.save_tensors(stem.with_suffix(".safetensors"), tensors)
    text = html.render(made.experiment)
    assert len(Reader(text).all("article")) == 2 * 5


def test_everything_is_escaped(make: Make) -> None:
    classes = (EVIL, *"123456789")
    made = make(classes=classes, pairs=((0, 4),))
    description = {"description": EVIL}
    text = html.render(made.experiment.model_copy(update=description))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert len(Reader(text).all("script")) == 2
    assert "&lt;no source&gt; answered" in text and "subset size &lt;13&gt;" in text


def test_script_json_cannot_close_its_element() -> None:
    text = str(page.script_json({"a": "</script><!--&"}))
    assert "<" not in text and ">" not in text and "&" not in text
    assert json.loads(text) == {"a": "</script><!--&"}


def test_equal_results_give_equal_bytes(make: Make) -> None:
    made = make(pairs=((4, 9),))
    assert html.render(made.experiment) == html.render(made.experiment)


def test_reads_nothing_but_its_declared_inputs(make: Make) -> None:
    made = make(pairs=((4, 9),))
    before = html.render(made.experiment)
    declared = set(inputs.report_inputs(made.experiment))
    for path in [*Path("results").rglob("*"), *Path("data").rglob("*")]:
        if path.is_file() and path not in declared:
            path.unlink()
    assert html.render(made.experiment) == before


@pytest.mark.parametrize("name", ["digits", "c3lt-mnist", "cecas-celeba-age"])
def test_printed_commands_are_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    experiment = load_experiment(name, "small")
    sharded = Evaluation(images=10, shard_size=4)
    for each in (experiment, experiment.model_copy(update={"evaluation": sharded})):
        lines = html.commands(each)[1]["lines"]
        parsed = [cli.parser().parse_args(shlex.split(line)[1:]) for line in lines]
        stages = [arguments.stage for arguments in parsed]
        directions = sum(len(each.directions(method)) for method in each.methods)
        assert stages.count(cli.explain) == directions * each.evaluation.shards
        assert stages.count(cli.gather) == (directions if each.evaluation.shards > 1 else 0)
        assert stages[-1] is cli.report
        trained = {
            key: [getattr(a, key) for a in parsed if a.stage is getattr(cli, key)]
            for key in ("classifier", "oracle", "generator")
        }
        users = [each.classifier, *(g.classifier for g in each.generators.values())]
        assert {*trained["classifier"]} == {*users} - {None}
        assert {*trained["oracle"]} == {n for n, o in each.oracles.items() if o.trained}
        assert {*trained["generator"]} == {*each.generators}
        assert {a.models for a in parsed if hasattr(a, "models")} == {each.models.name}


def test_accessible_basics(make: Make) -> None:
    text = html.render(make(pairs=((4, 9),)).experiment)
    reader = Reader(text)
    assert all(a.get("alt") for a in reader.all("img"))
    identifiers = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    for attribute in ("aria-labelledby", "aria-controls"):
        for _, attributes in reader.elements:
            assert attributes.get(attribute) is None or attributes[attribute] in identifiers
    assert reader.all("a")[0]["href"] == "#main"
    assert all(
        a.get("tabindex") == "0" and a.get("aria-label")
        for _, a in reader.elements
        if "scroll" in (a.get("class") or "").split()
    )


def test_budget_shrinks_the_gallery(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(pairs=((4, 9),))
    monkeypatch.setattr(html, "IMAGE_BUDGET", 60_000)
    text = html.render(made.experiment)
    shown = len(Reader(text).all("article"))
    assert 2 <= shown < 24
    assert f"{shown // 2} of 14 queries" in text


def test_difference_map_signs_and_strength() -> None:
    query = np.array([[[0.0, 0.5, 1.0, 0.2]]], dtype=np.float32)
    changed = np.array([[[1.0, 0.75, 0.0, 0.2]]], dtype=np.float32)
    found = gallery.difference_map(query, changed)[0]
    assert tuple(found[0]) == (*gallery.BRIGHTER, 255)
    assert tuple(found[1]) == (*gallery.BRIGHTER, 128)
    assert tuple(found[2]) == (*gallery.DARKER, 255)
    assert tuple(found[3]) == (0, 0, 0, 0)


def test_a_budget_is_kept_for_six_directions_of_three_methods(make: Make) -> None:
    assert len(html.render(make().experiment)) < 8_000_000
