"""The stage, and one battery that every metric of the package passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from counterlens import layout, plugins
from counterlens.config import DatasetOptions, Experiment, MetricOptions, Models
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.metrics import compute
from counterlens.metrics.base import CounterfactualSet, Metric, MetricContext, quantise
from counterlens.runtime import files

CONFIGURED: dict[str, dict[str, object]] = {
    "validity": {},
    "proximity": {},
    "cout": {"steps": 7},
    "im": {},
    "fid": {"extractor": "pixels"},
    "kid": {"extractor": "pixels", "subset_size": 6, "subsets": 5},
    "lpips": {"extractor": "pixels"},
    "denoised-validity": {},
    "faithfulness": {},
    "flip-rate": {},
    "s3": {"extractor": "pixels"},
    "mnac": {},
    "cd": {},
    "sfid": {"extractor": "pixels"},
    "oracle-validity": {"classifier": "pixels"},
    "norms": {},
}
OF_PAIRS = ("cd", "sfid")


def options_of(kind: str) -> MetricOptions:
    model = plugins.options_class("metrics", kind)
    options = model.model_validate({"kind": kind, **CONFIGURED[kind]})
    assert isinstance(options, MetricOptions)
    return options


def with_path(cf: CounterfactualSet, kept: int = 4) -> CounterfactualSet:
    """The set with a path of five steps of its first images, and what is intended along it."""
    if cf.query is None:
        return cf
    share = torch.linspace(0, 1, 5)[:, None, None, None]
    path = torch.lerp(cf.query[:kept, None], cf.counterfactual[:kept, None], share)
    intended = torch.tensor([0.3, 0.6, 0.1]).expand(len(path), 5, 3)
    features = path.mean((2, 3, 4))[..., None] + 0.25
    found = {"path": path, "path_intended": intended, "path_features": features}
    return replace(cf, extras={**cf.extras, **found})


class FirstPixels:
    """An image has attribute a if its pixel a is bright; attributes are as they come by chance."""

    correlations = torch.eye(3, dtype=torch.float64)

    def answers(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return images.flatten(1)[:, :3] > 127


class Halves:
    def reconstruct(self, images: Tensor, label: int | None) -> Tensor:
        return (2 * images - 1) * (0.5 if label is None else 0.2 + 0.5 * label)


@pytest.fixture
def context(bright, pixel_extractor, random_set) -> MetricContext:
    train = quantise(random_set(40, seed=9).counterfactual)
    return MetricContext(
        bright,
        {"autoencoders": Halves(), "pixels": pixel_extractor(), "attributes": FirstPixels()},
        reference=lambda label: train,
        attribute=1,
    )


def test_every_metric_of_the_package_is_in_the_battery() -> None:
    # these judge what only some methods keep, or ask a server: they have test files of their own
    others = ("background-loss", "diversity", "vlm")
    assert plugins.known("metrics") == sorted([*CONFIGURED, *others])


@pytest.mark.parametrize("kind", CONFIGURED)
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 8)])
def test_battery(
    kind: str, shape: tuple[int, int, int], bright, pixel_extractor, random_set
) -> None:
    """Declared columns, shape, dtype, determinism, inputs left alone, batch size."""
    cf = with_path(random_set(12, shape))
    before = cf.counterfactual.clone(), cf.query.clone()
    train = quantise(random_set(40, shape, seed=9).counterfactual)
    options = options_of(kind)
    results = []
    for batch_size in (2048, 2048, 5):
        context = MetricContext(
            bright,
            {"autoencoders": Halves(), "pixels": pixel_extractor(), "attributes": FirstPixels()},
            reference=lambda label: train,
            attribute=1,
            batch_size=batch_size,
        )
        metric = plugins.create("metrics", options, Metric, context)
        results.append((metric.per_image(cf), metric.per_set(cf)))
    images, sets = results[0]
    declared = {column.name: column for column in options.columns()}
    assert set(sets) == {name for name, column in declared.items() if column.per == "set"}
    scalars = {name for name, values in images.items() if values.ndim == 1}
    assert scalars == {name for name, column in declared.items() if column.per == "image"}
    for values in images.values():
        assert isinstance(values, np.ndarray) and values.dtype == np.float64
        assert len(values) == 12 and np.isfinite(values).all()
    for again, exactly in ((results[1], True), (results[2], False)):
        for name, values in images.items():
            if exactly:
                np.testing.assert_array_equal(again[0][name], values)
            np.testing.assert_allclose(again[0][name], values, atol=1e-6)
        assert again[1] == pytest.approx(sets, abs=1e-9)
    assert torch.equal(cf.counterfactual, before[0]) and torch.equal(cf.query, before[1])


@pytest.mark.parametrize("kind", [k for k in CONFIGURED if k not in ("fid", "kid", *OF_PAIRS)])
def test_each_image_is_judged_by_itself(kind: str, context, random_set, make_set) -> None:
    cf = random_set(5)
    metric = plugins.create("metrics", options_of(kind), Metric, context)
    whole = metric.per_image(cf)
    for row in (0, 4):
        one = make_set(cf.counterfactual[row : row + 1], cf.query[row : row + 1])
        for name, values in metric.per_image(one).items():
            np.testing.assert_allclose(values[0], whole[name][row], atol=1e-6)


def test_evaluate_gives_means_values_curves_and_image_numbers(context, random_set) -> None:
    cf = with_path(random_set(12))
    cf.table["image"] = np.arange(100, 112)
    summary, table = compute.evaluate(cf, [options_of(kind) for kind in CONFIGURED], context)
    assert list(table["image"]) == list(range(100, 112))
    assert summary["images"] == 12 and summary["not_available"] == {}
    for name, mean in summary["per_image"].items():
        assert mean == pytest.approx(table[name].mean())
    flipped = table["flip_rate"] == 1
    assert 0 < flipped.sum() < 12
    assert table["mnac_oracle"].notna().tolist() == flipped.tolist()
    along = {"feature_error", "confidence_error", "confidence_divergence"}
    assert set(summary["per_set"]) == {"fid_oracle", "kid_oracle", *along}
    assert "errors" not in summary
    assert {len(curve) for curve in table["curve_target"]} == {9}
    assert {"curve_source", "curve_target"}.isdisjoint(summary["per_image"])


def test_paired_metrics_of_an_unpaired_set_say_why_they_are_missing(
    context, random_set, make_set
) -> None:
    cf = make_set(random_set(12).counterfactual)
    summary, table = compute.evaluate(cf, [options_of(kind) for kind in CONFIGURED], context)
    missing = {"proximity", "proximity_pm1", "cout", "aupc_source", "aupc_target", "lpips_oracle"}
    missing |= {"s3_oracle", "mnac_oracle", "l1_norm", "l2_norm"}
    missing |= {"feature_error", "confidence_error", "confidence_divergence"}
    assert set(summary["not_available"]) == missing
    assert missing.isdisjoint(table) and missing.isdisjoint(summary["per_image"])
    assert {"validity", "denoised_validity", "im1", "im2"} <= set(summary["per_image"])


def test_an_empty_set_has_no_number(context, random_set) -> None:
    metrics = [options_of(kind) for kind in CONFIGURED]
    summary, table = compute.evaluate(random_set(0), metrics, context)
    assert summary["images"] == 0 and len(table) == 0
    assert summary["per_image"] == {} and summary["per_set"] == {}
    columns = [column for metric in metrics for column in metric.columns()]
    assert set(summary["not_available"]) == {c.name for c in columns if c.per != "pair"}


def test_missing_weights_leave_the_other_metrics_alone(
    context, pixel_extractor, random_set
) -> None:
    missing = pixel_extractor(standard=True, unavailable="inception-v3-fid: offline")
    context.oracles = {**context.oracles, "inception": missing}
    standard = plugins.options_class("metrics", "fid").model_validate({"kind": "fid"})
    assert isinstance(standard, MetricOptions)
    summary, _ = compute.evaluate(random_set(12), [standard, options_of("fid")], context)
    assert summary["not_available"] == {"fid": "inception-v3-fid: offline"}
    assert set(summary["per_set"]) == {"fid_oracle"}


# Which rows count


def with_errors(cf: CounterfactualSet) -> CounterfactualSet:
    """The first three queries are errors of the classifier."""
    cf.table["label"] = np.where(np.arange(len(cf)) < 3, cf.target, cf.source)
    cf.table["predicted_counterfactual"] = cf.target
    return cf


@pytest.mark.parametrize(("errors", "flipped"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_metric_counts_the_rows_it_is_told_to(context, random_set, errors, flipped) -> None:
    cf = with_errors(random_set(14))
    options = options_of("proximity").model_copy(
        update={"errors": bool(errors), "flipped": bool(flipped)}
    )
    wanted = np.ones(14, bool) if errors else np.arange(14) >= 3
    if flipped:
        shown = quantise(cf.counterfactual).float() / 255
        wanted &= (context.probabilities(shown).argmax(1) == cf.target).numpy()
    # the flip rate counts errors, so that all rows stand in the table
    summary, table = compute.evaluate(cf, [options, options_of("flip-rate")], context)
    assert len(table) == summary["images"] == 14
    assert table["proximity"].notna().tolist() == wanted.tolist()
    distance = (cf.counterfactual - cf.query).abs().mean((1, 2, 3))[torch.from_numpy(wanted)]
    assert summary["per_image"]["proximity"] == pytest.approx(distance.mean().item(), rel=1e-5)


def test_the_flip_rate_is_of_the_eight_bit_image(bright, make_set) -> None:
    """A mean of just above a half is a half when rounded down."""
    nearly = torch.full((1, 1, 4, 4), 0.5003)
    context = MetricContext(bright)
    cf = make_set(torch.cat([nearly, nearly + 0.1]), torch.zeros(2, 1, 4, 4))
    assert context.probabilities(nearly).argmax(1).item() == 1
    found = plugins.create("metrics", options_of("flip-rate"), Metric, context).per_image(cf)
    assert quantise(nearly).unique().item() == 128
    assert found["flip_rate"].tolist() == [1, 1]
    dark = make_set(torch.full((1, 1, 4, 4), 0.4999), torch.zeros(1, 1, 4, 4))
    found = plugins.create("metrics", options_of("flip-rate"), Metric, context).per_image(dark)
    assert quantise(dark.counterfactual).unique().item() == 127 and found["flip_rate"] == [0]


def test_no_row_that_counts(context, random_set) -> None:
    cf = replace(random_set(4), counterfactual=torch.zeros(4, 1, 6, 6))
    metrics = [options_of("mnac"), options_of("flip-rate")]
    summary, table = compute.evaluate(cf, metrics, context)
    assert summary["not_available"] == {"mnac_oracle": compute.NONE_FLIPS}
    assert summary["per_image"] == {"flip_rate": 0} and table["mnac_oracle"].isna().all()


# Pairs


def test_a_pair_is_judged_together(context, random_set) -> None:
    there, back = random_set(12), replace(random_set(10, seed=3), source=1, target=0)
    metrics = [options_of(kind) for kind in OF_PAIRS]
    against = {"kind": "fid", "extractor": "pixels", "against": "queries", "flipped": True}
    fid = plugins.options_class("metrics", "fid").model_validate({**against, "errors": True})
    found = compute.evaluate_pair([there, back], [*metrics, fid], context)  # type: ignore[list-item]
    assert set(found["per_pair"]) == {"cd_oracle", "sfid_oracle", "fid_oracle"}
    flips = sum(int(context.flipped(cf).sum()) for cf in (there, back))
    assert found["images"] == dict.fromkeys(found["per_pair"], flips) and 0 < flips < 22
    assert found["not_available"] == {}
    summary, _ = compute.evaluate(there, [*metrics, fid], context)  # type: ignore[list-item]
    assert summary["per_set"] == {} and summary["not_available"] == {}


def test_a_pair_of_real_images_or_none(context, random_set, make_set) -> None:
    metrics = [options_of(kind) for kind in OF_PAIRS]
    real = make_set(random_set(12).counterfactual)
    found = compute.evaluate_pair([real, real], metrics, context)
    assert found["per_pair"] == {}
    assert set(found["not_available"].values()) == {compute.UNPAIRED}
    found = compute.evaluate_pair([random_set(12), random_set(0)], metrics, context)
    assert set(found["not_available"].values()) == {compute.EMPTY}


# Errors of the classifier


def test_errors_count_in_no_number_and_are_told_apart(context, random_set) -> None:
    cf = with_path(random_set(14), kept=6)
    wrong = np.isin(np.arange(14), [0, 1, 9])
    cf.table["image"] = np.arange(50, 64)
    cf.table["label"] = np.where(wrong, cf.target, cf.source)
    cf.table["predicted_counterfactual"] = np.where(np.isin(np.arange(14), [1, 5]), 0, 1)
    metrics = [options for kind in CONFIGURED if not (options := options_of(kind)).errors]
    summary, table = compute.evaluate(cf, metrics, context)
    assert summary.pop("errors") == {"images": 3, "validity": pytest.approx(2 / 3)}

    right = torch.from_numpy(~wrong)
    clean = replace(
        cf,
        counterfactual=cf.counterfactual[right],
        query=cf.query[right],
        extras={name: tensor[2:] for name, tensor in cf.extras.items()},
        table=cf.table[~wrong].reset_index(drop=True),
    )
    expected, expected_table = compute.evaluate(clean, metrics, context)
    assert summary == expected and summary["images"] == 11
    pd.testing.assert_frame_equal(table, expected_table)
    assert table["image"].tolist() == [52, 53, 54, 55, 56, 57, 58, 60, 61, 62, 63]


def test_a_set_of_errors_alone(context, random_set) -> None:
    cf = with_path(random_set(3))
    cf.table["label"], cf.table["predicted_counterfactual"] = cf.target, cf.target
    summary, table = compute.evaluate(cf, [options_of("validity")], context)
    assert summary["errors"] == {"images": 3, "validity": 1}
    assert summary["images"] == len(table) == 0
    assert summary["not_available"] == {"validity": compute.EMPTY}


def test_paths_of_errors_alone_are_none(context, random_set) -> None:
    """The errors stand first, so that they may take all paths that are kept."""
    cf = with_path(random_set(12), kept=2)
    cf.table["label"] = np.where(np.arange(12) < 2, cf.target, cf.source)
    cf.table["predicted_counterfactual"] = cf.target
    metrics = [options_of("validity"), options_of("faithfulness")]
    summary, _ = compute.evaluate(cf, metrics, context)
    assert summary["images"] == 10 and set(summary["per_image"]) == {"validity"}
    along = ("feature_error", "confidence_error", "confidence_divergence")
    assert summary["not_available"] == dict.fromkeys(
        along, "no path of a correctly predicted query is kept"
    )


def test_original_data_have_no_errors(context, random_set, make_set) -> None:
    cf = make_set(random_set(12).counterfactual)
    cf.table["label"] = cf.target  # as written for these images
    summary, _ = compute.evaluate(cf, [options_of("validity")], context)
    assert summary["images"] == 12 and "errors" not in summary


def test_a_set_without_a_table_is_judged(context, random_set) -> None:
    cf = replace(random_set(5), table=pd.DataFrame())
    summary, table = compute.evaluate(cf, [options_of("validity")], context)
    assert summary["images"] == 5 and table["image"].tolist() == list(range(5))


OWN_METRIC = """
from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import Metric
import numpy as np

class Options(MetricOptions):
    def columns(self):
        return (Column(name="own", label="Own", direction="up"),)

class Own(Metric):
    def per_image(self, cf):
        return {VALUES}
"""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ('{"own": np.ones(len(cf))}', None),
        ('{"other": np.ones(len(cf))}', "declares"),
        ('{"own": np.full(len(cf), np.nan)}', "finite"),
        ('{"own": np.ones(2)}', "for each of 5"),
    ],
)
def test_a_users_own_metric_must_keep_its_word(
    tmp_path: Path, context, random_set, values: str, message: str | None
) -> None:
    path = tmp_path / f"own_{abs(hash(values))}.py"
    path.write_text(OWN_METRIC.replace("VALUES", values[1:-1]))
    model = plugins.options_class("metrics", str(path))
    options = model.model_validate({"kind": str(path)})
    assert isinstance(options, MetricOptions)
    if message is None:
        assert compute.evaluate(random_set(5), [options], context)[0]["per_image"] == {"own": 1.0}
    else:
        with pytest.raises(ValueError, match=message):
            compute.evaluate(random_set(5), [options], context)


def write_set(cf: CounterfactualSet) -> None:
    path = layout.counterfactuals(cf.experiment, cf.method, cf.source, cf.target)
    about = {
        "experiment": cf.experiment,
        "method": cf.method,
        "source": str(cf.source),
        "target": str(cf.target),
    }
    tensors = {"counterfactual": cf.counterfactual.numpy()}
    if cf.query is not None:
        tensors["query"] = cf.query.numpy()
    tensors |= {name: tensor.numpy() for name, tensor in cf.extras.items()}
    files.save_tensors(Path(f"{path}.safetensors"), tensors, about)
    files.write_parquet(Path(f"{path}.parquet"), cf.table)


class Toy(DatasetOptions):
    """Images of 6x6 that are known by their attributes alone."""

    attributes: ClassVar[tuple[str, ...]] = ("large", "bright", "round")
    shape: ClassVar[tuple[int, int, int]] = (1, 6, 6)
    licence: ClassVar[str] = "none"


@pytest.fixture
def stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bright, make_experiment, random_set
) -> tuple[Experiment, Callable[..., list[str]]]:
    """An experiment with all metrics about what is bright, and a way to give it its oracles."""
    monkeypatch.chdir(tmp_path)
    attributes = np.zeros((40, 3), np.uint8)
    attributes[:, 0], attributes[:, 1] = 1, np.arange(40) % 5 > 1
    tensors = {
        "images": quantise(random_set(40, seed=9).counterfactual).numpy(),
        "labels": np.zeros(40, np.int64),
        "attributes": attributes,
    }
    files.save_tensors(layout.prepared("toy", "train"), tensors)
    experiment = make_experiment(
        dataset=Toy(kind="toy"),
        pairs=[(0, 1)],
        classifier={"kind": "lenet", "attribute": "bright"},
        metrics=tuple(options_of(kind) for kind in CONFIGURED),
    )

    def give(oracles: dict[str, object]) -> list[str]:
        """What is loaded, in order, once the stage has run."""
        loaded: list[str] = []

        def load(models: Models, name: str, device: torch.device) -> object:
            assert models is experiment.models
            loaded.append(name)
            return {"lenet": bright, **oracles}[name]

        monkeypatch.setattr(compute.classifiers, "load", load)
        monkeypatch.setattr(compute.oracles, "load", load)
        return loaded

    return experiment, give


def test_the_stage_writes_both_files_the_same_each_time(
    stage, pixel_extractor, random_set: Callable[..., CounterfactualSet]
) -> None:
    experiment, give = stage
    write_set(with_path(random_set(12)))
    pixels = pixel_extractor()
    loaded = give({"attributes": FirstPixels(), "autoencoders": Halves(), "pixels": pixels})
    output = layout.metrics("tiny", "hand", 0, 1)
    written = []
    for _ in range(2):
        compute.compute(experiment, "hand", 0, 1, torch.device("cpu"))
        written.append([Path(f"{output}{suffix}").read_bytes() for suffix in (".json", ".parquet")])
    assert written[0] == written[1]
    assert loaded == 2 * ["lenet", "attributes", "autoencoders", "pixels"]
    summary = files.read_json(Path(f"{output}.json"))
    assert (summary["experiment"], summary["method"]) == ("tiny", "hand")
    assert (summary["source"], summary["target"], summary["images"]) == (0, 1, 12)
    table = pd.read_parquet(f"{output}.parquet")
    assert summary["per_image"]["cout"] == pytest.approx(table["cout"].mean())
    assert len(table["curve_source"][0]) == 9
    assert summary["per_set"]["feature_error"] == pytest.approx(0.25)
    # only what is bright is the reference of 0_to_1, and the second job finds its features kept
    asked = [len(call) for call in pixels.calls]
    assert sorted(asked) == [12, 12, 12, 12, 24]  # counterfactuals and queries, twice
    reference = load_split(layout.prepared("toy", "train"), [1], attribute=1).images
    (seen,) = (call for call in pixels.calls if len(call) == 24)
    assert torch.equal(seen, quantise(reference))


def test_the_context_is_of_what_the_classifier_tells(stage) -> None:
    experiment, give = stage
    give({})
    context = compute.context_of(experiment, [], torch.device("cpu"))
    assert context.attribute == 1 and context.class_names == ("not bright", "bright")
    assert context.oracles == {}


def test_the_stage_without_its_input_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = SimpleNamespace(name="tiny", metrics=[])
    with pytest.raises(UserError, match="0_to_1"):
        compute.compute(experiment, "hand", 0, 1, torch.device("cpu"))  # type: ignore[arg-type]


def test_options_of_every_metric_are_known_without_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from counterlens import plugins\n"
        "for kind in plugins.known('metrics'):\n"
        "    plugins.options_class('metrics', kind).model_validate({'kind': kind}).columns()\n"
        "for kind in plugins.known('oracles'):\n"
        "    plugins.options_class('oracles', kind).model_validate({'kind': kind})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_stage_of_a_pair(stage, pixel_extractor, random_set) -> None:
    """Both directions are read, or the one that is run; only what judges pairs is loaded."""
    experiment, give = stage
    sets = {(0, 1): random_set(12), (1, 0): random_set(9, seed=4)}
    for (source, target), cf in sets.items():
        stem = layout.counterfactuals("tiny", "hand", source, target)
        tensors = {"query": cf.query.numpy(), "counterfactual": cf.counterfactual.numpy()}
        facts = {"experiment": "tiny", "method": "hand"}
        facts |= {"source": str(source), "target": str(target)}
        files.save_tensors(stem.with_suffix(".safetensors"), tensors, facts)
        files.write_parquet(stem.with_suffix(".parquet"), cf.table)
    loaded = give({"attributes": FirstPixels(), "pixels": pixel_extractor()})
    written = []
    path = layout.pair_metrics("tiny", "hand", "0-1").with_suffix(".json")
    for _ in range(2):
        compute.compute_pair(experiment, "hand", (0, 1), torch.device("cpu"))
        written.append(path.read_bytes())
    assert written[0] == written[1] and set(loaded) == {"lenet", "attributes", "pixels"}
    summary = files.read_json(path)
    assert summary["pair"] == [0, 1] and set(summary["per_pair"]) == {"cd_oracle", "sfid_oracle"}
    both = summary["images"]["cd_oracle"]
    forward = experiment.evaluation.model_copy(update={"directions": "forward"})
    one_way = experiment.model_copy(update={"evaluation": forward})
    compute.compute_pair(one_way, "hand", (0, 1), torch.device("cpu"))
    assert 0 < files.read_json(path)["images"]["cd_oracle"] < both
