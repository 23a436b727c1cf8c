"""sFID, FID of a pair, and S3."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from counterlens.errors import UserError
from counterlens.metrics.base import CounterfactualSet, MetricContext, NotAvailable
from counterlens.metrics.fid import Fid, frechet_distance
from counterlens.metrics.fid import Options as FidOptions
from counterlens.metrics.s3 import S3
from counterlens.metrics.s3 import Options as S3Options
from counterlens.metrics.sfid import Options as SFidOptions
from counterlens.metrics.sfid import SFid

SFID = SFidOptions(kind="sfid", extractor="pixels")


def bright_images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.55 + 0.4 * torch.rand(count, 1, 4, 4, generator=generator)


@pytest.fixture
def context(bright, pixel_extractor) -> MetricContext:
    return MetricContext(bright, {"pixels": pixel_extractor()})


def shuffled(cf: CounterfactualSet) -> CounterfactualSet:
    order = torch.randperm(len(cf), generator=torch.Generator().manual_seed(0))
    assert cf.query is not None
    table = cf.table.iloc[order.numpy()].reset_index(drop=True)
    return CounterfactualSet(
        cf.experiment,
        cf.method,
        cf.source,
        cf.target,
        cf.counterfactual[order],
        cf.query[order],
        table=table,
    )


def test_sfid_does_not_depend_on_the_order(context, make_set) -> None:
    cf = make_set(bright_images(40, 0), bright_images(40, 1))
    found = SFid(SFID, context).per_pair([cf])
    again = SFid(SFID, context).per_pair([shuffled(cf)])
    assert found["sfid_oracle"] == pytest.approx(again["sfid_oracle"], rel=1e-6)


def test_no_image_meets_its_own_query(context, make_set) -> None:
    """Counterfactuals that are their queries have no FID, but the sFID of two halves."""
    x = bright_images(60, 0)
    cf = make_set(x, x)
    options = FidOptions(kind="fid", extractor="pixels", against="queries", flipped=True)
    fid = Fid(options, context).per_pair([cf])["fid_oracle"]
    sfid = SFid(SFID, context).per_pair([cf])["sfid_oracle"]
    assert fid == pytest.approx(0, abs=1e-4) and sfid > 10 * max(fid, 1e-4)


def test_fid_of_a_pair_compares_what_flips_with_all_queries(
    context, make_set, pixel_extractor
) -> None:
    made, query = bright_images(30, 0), bright_images(30, 1)
    made[:10] = 0.1  # dark: these do not flip
    back = make_set(1 - made, query, source=1, target=0)
    there = make_set(made, query)
    options = FidOptions(kind="fid", extractor="pixels", against="queries", flipped=True)
    found = Fid(options, context).per_pair([there, back])["fid_oracle"]
    kept = torch.cat([made[10:], (1 - made)[10:]])
    features = pixel_extractor().features
    real = features((torch.cat([query, query]) * 255).round().byte())
    expected = frechet_distance(real, features((kept * 255).round().byte()))
    assert found == pytest.approx(expected, rel=1e-4)
    assert Fid(options, context).per_set(there) == {}


def test_too_few_flips(context, make_set) -> None:
    made = torch.full((20, 1, 4, 4), 0.1)
    made[0] = 0.9
    cf = make_set(made, bright_images(20, 1))
    with pytest.raises(NotAvailable, match="fewer than two"):
        SFid(SFID, context).per_pair([cf])


def test_s3_is_the_cosine(context, make_set) -> None:
    query, made = bright_images(5, 0), bright_images(5, 1)
    cf = make_set(made, query)
    found = S3(S3Options(kind="s3", extractor="pixels"), context).per_image(cf)["s3_oracle"]
    a, b = ((x * 255).round().numpy().reshape(5, -1)[:, :6] for x in (query, made))
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    same = S3(S3Options(kind="s3", extractor="pixels"), context).per_image(make_set(query, query))
    np.testing.assert_allclose(same["s3_oracle"], 1)


def test_only_simsiam_has_the_standard_name(bright, pixel_extractor, make_set) -> None:
    cf = make_set(bright_images(3, 0), bright_images(3, 1))
    for name, standard in (("simsiam-resnet50", False), ("pixels", True)):
        context = MetricContext(bright, {name: pixel_extractor(standard=standard)})
        with pytest.raises(UserError, match="keeps its meaning"):
            S3(S3Options(kind="s3", extractor=name), context).per_image(cf)
    standard = pixel_extractor(standard=True, unavailable="no file named")
    context = MetricContext(bright, {"simsiam-resnet50": standard})
    with pytest.raises(NotAvailable, match="no file named"):
        S3(S3Options(kind="s3"), context).per_image(cf)
    assert pd.Series([c.name for c in S3Options(kind="s3").columns()]).tolist() == ["s3"]
