from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from counterlens.metrics.base import CounterfactualSet, MetricContext
from counterlens.metrics.cout import Cout, Options, area, insertion_steps


def options(**keywords: object) -> Options:
    return Options.model_validate({"kind": "cout", **keywords})


class Constant(nn.Module):
    """Probability 1 (to float precision) of the last of three classes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.0, 0.0, 200.0]).repeat(len(x), 1)


def reference(cf: CounterfactualSet, classifier: nn.Module, steps: int) -> tuple[Tensor, float]:
    """The curves one image and one step at a time, from the definition."""
    assert cf.query is not None
    _, _, height, width = cf.query.shape
    per_step = max(1, height * width // steps)
    curves = []
    for x, x_cf in zip(cf.query, cf.counterfactual, strict=True):
        mask = (x_cf - x).abs().mean(0).flatten().tolist()
        order = sorted(range(len(mask)), key=lambda pixel: (-mask[pixel], pixel))
        image, answers = x.clone().flatten(1), []
        for start in range(0, len(order) + per_step, per_step):
            probability = classifier(image.reshape(1, *x.shape)).softmax(1)[0]
            answers.append(probability[[cf.source, cf.target]].double())
            image[:, order[start : start + per_step]] = x_cf.flatten(1)[
                :, order[start : start + per_step]
            ]
        curves.append(torch.stack(answers))
    return torch.stack(curves), per_step / (height * width)


def test_a_curve_of_ones_has_area_one_in_paper_scale_and_more_in_code_scale(make_set) -> None:
    query = torch.zeros(2, 1, 28, 28)
    cf = make_set(torch.ones_like(query), query, source=0, target=2)
    paper = Cout(options(), MetricContext(Constant())).per_image(cf)
    code = Cout(options(scale="code"), MetricContext(Constant())).per_image(cf)
    assert paper["curve_target"].shape == (2, 54)
    assert paper["aupc_target"] == pytest.approx([1.0, 1.0], abs=1e-12)
    assert code["aupc_target"] == pytest.approx([53 * 15 / 784] * 2, abs=1e-12)
    assert round(code["aupc_target"][0], 4) == 1.0140
    assert paper["cout"] == pytest.approx([1.0, 1.0], abs=1e-6)


def test_by_hand_on_four_pixels(bright, make_set) -> None:
    query = torch.zeros(1, 1, 2, 2)
    cf = make_set(torch.tensor([0.5, 1.0, 0.0, 0.75]).reshape(1, 1, 2, 2), query)
    found = Cout(options(steps=4), MetricContext(bright)).per_image(cf)
    means = np.array([0, 1.0, 1.75, 2.25, 2.25]) / 4
    other = 1 + np.exp(-9)
    target = np.exp(4 * (means - 0.5)) / (other + np.exp(4 * (means - 0.5)))
    source = 1 / (other + np.exp(4 * (means - 0.5)))
    np.testing.assert_allclose(found["curve_target"][0], target, rtol=1e-6)
    np.testing.assert_allclose(found["curve_source"][0], source, rtol=1e-6)
    expected = {
        "aupc_target": np.trapezoid(target) / 4,
        "aupc_source": np.trapezoid(source) / 4,
    }
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, rel=1e-6)
    assert found["cout"][0] == pytest.approx(
        expected["aupc_target"] - expected["aupc_source"], rel=1e-6
    )


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 7)])
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_equals_the_definition(bright, random_set, shape: tuple[int, int, int], steps: int) -> None:
    cf = random_set(5, shape)
    curves, weight = reference(cf, bright, steps)
    found = Cout(options(steps=steps), MetricContext(bright, batch_size=7)).per_image(cf)
    np.testing.assert_allclose(found["curve_source"], curves[..., 0].numpy(), atol=1e-6)
    np.testing.assert_allclose(found["curve_target"], curves[..., 1].numpy(), atol=1e-6)
    code = Cout(options(steps=steps, scale="code"), MetricContext(bright)).per_image(cf)
    np.testing.assert_allclose(
        code["aupc_target"], np.trapezoid(curves[..., 1].numpy()) * weight, atol=1e-6
    )


def test_the_ends_are_the_query_and_the_counterfactual_bit_for_bit(bright, random_set) -> None:
    cf = random_set(3)
    Cout(options(steps=4), MetricContext(bright, batch_size=1)).per_image(cf)
    assert cf.query is not None
    asked = torch.cat(bright.asked)
    for image in (*cf.query, *cf.counterfactual):
        assert any(torch.equal(image, one) for one in asked)


def test_steps_at_which_nothing_changes_are_not_asked_again(bright, make_set) -> None:
    query = torch.zeros(1, 1, 4, 4)
    changed = query.clone()
    changed[0, 0, 2, 1] = 1
    found = Cout(options(steps=16), MetricContext(bright)).per_image(make_set(changed, query))
    assert len(torch.cat(bright.asked)) == 2
    assert len(set(found["curve_target"][0, 1:])) == 1
    assert found["curve_target"][0, 0] < found["curve_target"][0, 1]


def test_an_unchanged_image_gives_its_probability(bright, random_set, make_set) -> None:
    query = random_set(4).counterfactual
    found = Cout(options(), MetricContext(bright)).per_image(make_set(query, query.clone()))
    probability = bright(query).softmax(1)
    np.testing.assert_allclose(found["aupc_target"], probability[:, 1].numpy(), rtol=1e-6)
    np.testing.assert_allclose(found["aupc_source"], probability[:, 0].numpy(), rtol=1e-6)


def test_equal_pixels_go_in_raster_order() -> None:
    mask = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.5, 0.0]])
    inserted, steps, per_step = insertion_steps(mask, 6)
    assert (steps, per_step) == (6, 1)
    assert inserted.tolist() == [[4, 1, 5, 2, 3, 6]]


def test_50_steps_on_784_pixels_are_53_steps_of_15_with_a_last_one_of_4() -> None:
    inserted, steps, per_step = insertion_steps(torch.rand(2, 784), 50)
    assert (steps, per_step) == (53, 15)
    counts = inserted[0].bincount().tolist()
    assert counts == [0, *[15] * 52, 4]


def test_a_methods_own_mask_decides_the_order(bright, make_set) -> None:
    query = torch.zeros(1, 1, 2, 2)
    counterfactual = torch.tensor([1.0, 0.5, 0.25, 0.0]).reshape(1, 1, 2, 2)
    mask = torch.tensor([0.1, 0.2, 0.9, 0.0]).reshape(1, 1, 2, 2)
    cf = make_set(counterfactual, query, extras={"mask": mask})
    Cout(options(steps=4), MetricContext(bright)).per_image(cf)
    totals = [image.sum().item() for image in torch.cat(bright.asked)]
    assert totals == [0, 0.25, 0.75, 1.75]


def of_mean(mean: float) -> tuple[float, float]:
    """What `bright` answers of source and target for an image of that mean."""
    logits = np.array([0, 4 * (mean - 0.5), -9])
    answers = np.exp(logits) / np.exp(logits).sum()
    return answers[0], answers[1]


def test_the_curve_over_edits_by_hand(bright, make_set) -> None:
    """Three edits, one, none, and two of which the second pasted only what the first had.

    Each curve has its own number of steps.
    """
    query = torch.zeros(4, 1, 2, 2)
    order = torch.tensor([[1, 2, 2, 3], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    order = order.float().view(4, 1, 2, 2)
    edits = torch.tensor([3.0, 1.0, 0.0, 2.0])
    counterfactual = torch.tensor([0.4, 0.8, 0.4, 0.8]).view(1, 1, 2, 2) * (order > 0)
    cf = make_set(counterfactual, query, extras={"edit_order": order, "edits": edits})
    for scale in ("paper", "code"):
        found = Cout(options(scale=scale), MetricContext(bright)).per_image(cf)
        means = [[0, 0.1, 0.4, 0.6], [0, 0.2], [0], [0, 0.2, 0.2]]
        for row, walked in enumerate(means):
            for kind, index in (("source", 0), ("target", 1)):
                curve = [of_mean(mean)[index] for mean in walked]
                steps = max(1, len(curve) - 1)
                wanted = np.trapezoid(curve) / steps if len(curve) > 1 else curve[0]
                assert found[f"aupc_{kind}"][row] == pytest.approx(wanted, rel=1e-5)
                shown = found[f"curve_{kind}"][row]
                np.testing.assert_allclose(shown[: len(curve)], curve, rtol=1e-5)
                np.testing.assert_allclose(shown[len(curve) :], curve[-1], rtol=1e-5)
    np.testing.assert_allclose(found["cout"], found["aupc_target"] - found["aupc_source"])


def test_no_edits_at_all_and_no_image(bright, make_set, random_set) -> None:
    query = random_set(2).counterfactual
    none = torch.zeros(2, 1, 6, 6)
    cf = make_set(query, query.clone(), extras={"edit_order": none, "edits": torch.zeros(2)})
    found = Cout(options(), MetricContext(bright)).per_image(cf)
    np.testing.assert_allclose(found["aupc_target"], bright(query).softmax(1)[:, 1], rtol=1e-5)
    empty = make_set(query[:0], query[:0], extras={"edit_order": none[:0], "edits": torch.zeros(0)})
    assert Cout(options(), MetricContext(bright)).per_image(empty)["cout"].shape == (0,)


def test_a_pixel_that_no_edit_changed_is_a_bug(bright, make_set) -> None:
    query = torch.zeros(1, 1, 2, 2)
    order = torch.tensor([1.0, 0, 0, 0]).view(1, 1, 2, 2)
    edits = torch.ones(1)
    broken = make_set(query + 1, query, extras={"edit_order": order, "edits": edits})
    with pytest.raises(ValueError, match="in none of the edits"):
        Cout(options(), MetricContext(bright)).per_image(broken)


def test_an_edit_beyond_their_number_is_a_bug(bright, make_set) -> None:
    query = torch.zeros(1, 1, 2, 2)
    order = torch.tensor([1.0, 2, 2, 1]).view(1, 1, 2, 2)
    edits = torch.ones(1)
    broken = make_set(query + 1, query, extras={"edit_order": order, "edits": edits})
    with pytest.raises(ValueError, match="beyond the number of edits"):
        Cout(options(), MetricContext(bright)).per_image(broken)


def test_a_mask_with_nan_is_a_bug(bright, random_set, make_set) -> None:
    cf = random_set(1)
    mask = torch.full((1, 1, 6, 6), torch.nan)
    broken = make_set(cf.counterfactual, cf.query, extras={"mask": mask})
    with pytest.raises(ValueError, match="NaN"):
        Cout(options(), MetricContext(bright)).per_image(broken)


def test_batch_size_changes_nothing_and_inputs_are_left_alone(bright, random_set) -> None:
    cf = random_set(6)
    assert cf.query is not None
    before = cf.query.clone(), cf.counterfactual.clone()
    results = [
        Cout(options(), MetricContext(bright, batch_size=size)).per_image(cf)
        for size in (1, 13, 4096)
    ]
    for result in results[1:]:
        for name, values in result.items():
            np.testing.assert_allclose(values, results[0][name], atol=1e-7)
    assert torch.equal(cf.query, before[0]) and torch.equal(cf.counterfactual, before[1])


def test_no_image(bright, random_set) -> None:
    found = Cout(options(), MetricContext(bright)).per_image(random_set(0))
    assert found["cout"].shape == (0,)


def test_a_batch_of_one_equals_its_row_in_the_set(bright, random_set, make_set) -> None:
    cf = random_set(4)
    assert cf.query is not None
    whole = Cout(options(), MetricContext(bright)).per_image(cf)
    one = Cout(options(), MetricContext(bright)).per_image(
        make_set(cf.counterfactual[2:3], cf.query[2:3])
    )
    for name, values in one.items():
        np.testing.assert_allclose(values[0], whole[name][2], atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.sampled_from(["paper", "code"]))
def test_ranges(seed: int, steps: int, scale: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    query, other = (torch.rand(3, 1, 5, 5, generator=generator).round() for _ in range(2))
    cf = CounterfactualSet("e", "m", 0, 1, counterfactual=other, query=query)
    found = Cout(options(steps=steps, scale=scale), MetricContext(classifier)).per_image(cf)
    top = 1 if scale == "paper" else (25 + max(1, 25 // steps)) / 25
    for name in ("aupc_source", "aupc_target"):
        assert ((found[name] >= 0) & (found[name] <= top + 1e-9)).all()
    np.testing.assert_allclose(found["cout"], found["aupc_target"] - found["aupc_source"])
    # source and target exchanged: the same curves, exchanged
    swapped = CounterfactualSet("e", "m", 1, 0, counterfactual=other, query=query)
    back = Cout(options(steps=steps, scale=scale), MetricContext(classifier)).per_image(swapped)
    np.testing.assert_allclose(back["cout"], -found["cout"], atol=1e-9)


def test_area_is_the_trapezoid_rule() -> None:
    curve = torch.rand(4, 9, dtype=torch.float64)
    expected = torch.trapezoid(curve, dx=0.125)
    torch.testing.assert_close(area(curve, 0.125), expected)


def test_zero_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        options(steps=0)
