"""One battery that every metric of the package passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from counterlens import plugins
from counterlens.metrics.base import Metric, MetricContext, quantise

from .battery import CONFIGURED, OF_PAIRS, FirstPixels, Halves, options_of, with_path


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
