from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor
from torch.utils.data import Dataset

from counterlens.errors import UserError
from counterlens.metrics.base import MetricContext, NotAvailable, quantise
from counterlens.metrics.fid import Fid
from counterlens.metrics.fid import Options as FidOptions
from counterlens.metrics.kid import Kid
from counterlens.metrics.kid import Options as KidOptions

FID = FidOptions(kind="fid", extractor="pixels")


def kid_options(**keywords: object) -> KidOptions:
    defaults = {"kind": "kid", "extractor": "pixels", "subset_size": 20, "subsets": 8}
    return KidOptions.model_validate({**defaults, **keywords})


def images(count: int, seed: int, power: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 4, 4, generator=generator) ** power


def context_of(extractor: object, train: Tensor, name: str = "pixels") -> MetricContext:
    return MetricContext(
        torch.nn.Identity(), {name: extractor}, reference=lambda label: quantise(train)
    )


def test_fid_is_the_frechet_distance_of_the_quantised_sets(pixel_extractor, make_set) -> None:
    made, real = images(50, 0), images(80, 1, power=2.0)
    fid = Fid(FID, context_of(pixel_extractor(), real)).per_set(make_set(made))
    a, b = ((quantise(x).numpy() / 255).reshape(len(x), -1)[:, :6] for x in (made, real))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root).real
    assert fid == {"fid_oracle": pytest.approx(expected, rel=1e-4)}


def test_kid_of_whole_sets_is_the_unbiased_mmd(pixel_extractor, make_set) -> None:
    made, real = images(20, 0), images(20, 1, power=2.0)
    options = kid_options(subset_size=20, subsets=1)
    kid = Kid(options, context_of(pixel_extractor(), real)).per_set(make_set(made))["kid_oracle"]
    a, b = ((quantise(x).double() / 255).flatten(1)[:, :6] for x in (made, real))

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / 6 + 1) ** 3

    def off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (20 * 19)

    expected = off_diagonal(kernel(a, a)) + off_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean()
    assert kid == pytest.approx(expected.item(), rel=1e-4)


class Images(Dataset):
    """What torch-fidelity reads: uint8 (3, H, W)."""

    def __init__(self, data: Tensor) -> None:
        self.data = quantise(data).expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]


def test_same_numbers_as_torch_fidelity_with_a_registered_extractor(
    pixel_extractor, make_set
) -> None:
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    class Pixels(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("pixels",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "pixels"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x[:, :1].float().flatten(1)[:, :6] / 255,)

    made, real = images(60, 3), images(90, 4, power=1.5)
    register_feature_extractor("counterlens-test-pixels", Pixels)
    try:
        theirs = torch_fidelity.calculate_metrics(
            input1=Images(made),
            input2=Images(real),
            cuda=False,
            fid=True,
            kid=True,
            feature_extractor="counterlens-test-pixels",
            feature_layer_fid="pixels",
            feature_layer_kid="pixels",
            kid_subset_size=25,
            kid_subsets=30,
            rng_seed=2020,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
        )
    finally:
        del FEATURE_EXTRACTORS_REGISTRY["counterlens-test-pixels"]
    context = context_of(pixel_extractor(), real)
    cf = make_set(made)
    fid = Fid(FID, context).per_set(cf)["fid_oracle"]
    kid = Kid(kid_options(subset_size=25, subsets=30), context).per_set(cf)["kid_oracle"]
    assert fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)
    assert kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_fid_and_kid_share_features(pixel_extractor, make_set) -> None:
    extractor = pixel_extractor()
    context, cf = context_of(extractor, images(30, 1)), make_set(images(25, 0))
    Fid(FID, context).per_set(cf)
    Kid(kid_options(), context).per_set(cf)
    assert sorted(len(call) for call in extractor.calls) == [25, 30]


def test_a_better_set_is_nearer(pixel_extractor, make_set) -> None:
    context = context_of(pixel_extractor(), images(200, 1))
    near, far = make_set(images(200, 2)), make_set(images(200, 2, power=3.0))
    options = kid_options(subset_size=100)
    assert Fid(FID, context).per_set(near)["fid_oracle"] < 0.1
    assert Fid(FID, context).per_set(far)["fid_oracle"] > 0.2
    assert abs(Kid(options, context).per_set(near)["kid_oracle"]) < 0.02
    assert Kid(options, context).per_set(far)["kid_oracle"] > 0.05


def test_kid_is_repeatable_and_its_seed_matters(pixel_extractor, make_set) -> None:
    cf, real = make_set(images(40, 0)), images(60, 1)

    def kid(seed: int) -> float:
        return Kid(kid_options(seed=seed), context_of(pixel_extractor(), real)).per_set(cf)[
            "kid_oracle"
        ]

    assert kid(1) == kid(1) != kid(2)


@pytest.mark.parametrize(("made", "real"), [(19, 50), (50, 19)])
def test_kid_subset_larger_than_a_set_says_what_to_do(
    pixel_extractor, make_set, made: int, real: int
) -> None:
    context = context_of(pixel_extractor(), images(real, 1))
    cf = make_set(images(made, 0), source=4, target=9)
    with pytest.raises(UserError) as error:
        Kid(kid_options(), context).per_set(cf)
    message = str(error.value)
    for part in ("4_to_9", "subset_size 20", f"{made} counterfactuals", f"{real} training images"):
        assert part in message
    assert "shrink_subset" in message


def test_a_shrunk_subset_is_told(pixel_extractor, make_set) -> None:
    context, cf = context_of(pixel_extractor(), images(50, 1)), make_set(images(12, 0))
    shrinking = Kid(kid_options(shrink_subset=True), context)
    same = Kid(kid_options(subset_size=12), context)
    assert shrinking.per_set(cf) == same.per_set(cf)
    assert shrinking.notes(cf) == {"kid_oracle": "subset size 12, not 20"}
    assert same.notes(cf) == {}
    assert Kid(kid_options(subset_size=12, shrink_subset=True), context).notes(cf) == {}
    with pytest.raises(UserError, match="subset_size"):
        Kid(kid_options(shrink_subset=True), context).per_set(make_set(images(1, 0)))


@pytest.mark.parametrize(("made", "real"), [(1, 50), (0, 50), (50, 1)])
def test_fid_of_too_few_images_says_so(pixel_extractor, make_set, made: int, real: int) -> None:
    context = context_of(pixel_extractor(), images(real, 1))
    with pytest.raises(UserError, match="needs at least 2"):
        Fid(FID, context).per_set(make_set(images(made, 0)))


def test_only_inception_gives_the_standard_columns() -> None:
    assert [c.name for c in FidOptions(kind="fid").columns()] == ["fid"]
    assert [c.name for c in KidOptions(kind="kid").columns()] == ["kid"]
    assert [c.name for c in FID.columns()] == ["fid_oracle"]
    assert [c.name for c in kid_options().columns()] == ["kid_oracle"]
    assert KidOptions(kind="kid").columns()[0].scale == 1000
    assert kid_options().columns()[0].scale == 1
    assert FidOptions(kind="fid").oracles() == ("inception",)
    assert KidOptions(kind="kid").subset_size == 500


def test_missing_weights_make_the_metric_not_available(pixel_extractor, make_set) -> None:
    missing = pixel_extractor(standard=True, unavailable="inception-v3-fid: offline")
    context = context_of(missing, images(5, 1), "inception")
    for metric in (
        Fid(FidOptions(kind="fid"), context),
        Kid(KidOptions(kind="kid"), context),
    ):
        with pytest.raises(NotAvailable, match="offline"):
            metric.per_set(make_set(images(3, 0)))
