"""Sets and pairs of sets are judged by many metrics at once: which rows count in which number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from counterlens import plugins
from counterlens.config import MetricOptions
from counterlens.metrics import compute
from counterlens.metrics.base import CounterfactualSet, Metric, MetricContext, quantise

from .battery import CONFIGURED, OF_PAIRS, options_of, with_path


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
