"""KID: kernel distance between counterfactuals and real images (Bińkowski et al. 2018, §4)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from counterlens.config import Column, MetricOptions
from counterlens.errors import UserError
from counterlens.metrics.base import CounterfactualSet, Metric


class Options(MetricOptions):
    """KID with the features of the oracle `extractor`, over `subsets` subsets of `subset_size`.

    Only the oracle `inception` gives the column `kid`; any other gives `kid_oracle`. With
    `shrink_subset` a set smaller than `subset_size` uses all its images; without, it is an error.
    `seed` draws the subsets, the same for every method.
    """

    paired: ClassVar[bool] = False

    extractor: str = "inception"
    subset_size: int = Field(default=500, ge=2)
    subsets: int = Field(default=100, gt=0)
    degree: int = Field(default=3, gt=0)
    seed: int = Field(default=2020, ge=0)
    shrink_subset: bool = False

    def columns(self) -> tuple[Column, ...]:
        """`kid` or `kid_oracle`, one value per direction, the standard one printed x 1000."""
        standard = self.extractor == "inception"
        return (
            Column(
                name="kid" if standard else "kid_oracle",
                label="KID×1e3" if standard else "KID-oracle",  # noqa: RUF001
                direction="down",
                scale=1000 if standard else 1,
                per="set",
                decimals=2,
            ),
        )

    def oracles(self) -> tuple[str, ...]:
        """The feature extractor."""
        return (self.extractor,)


class Kid(Metric):
    """Unbiased squared MMD, kernel (⟨a, b⟩/d + 1)^degree, mean of subsets, by torch-fidelity.

    Set 1 is the counterfactuals of the direction, set 2 the training images of the target class,
    both as uint8.
    """

    def per_set(self, cf: CounterfactualSet) -> dict[str, float]:
        """The one column that the options declare.

        Raises:
            NotAvailable: the extractor's weights cannot be had.
            UserError: a set is smaller than the subset.
        """
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

        options: Options = self.options
        self.context.extractor(options.extractor)
        real = self.context.reference_features(options.extractor, cf.target)
        smaller = min(len(cf), len(real))
        size = min(options.subset_size, smaller) if options.shrink_subset else options.subset_size
        if size > smaller or size < 2:
            raise UserError(
                f"KID of {cf.experiment} {cf.method} {cf.source}_to_{cf.target}: subset_size "
                f"{options.subset_size} needs as many images on both sides, there are {len(cf)} "
                f"counterfactuals and {len(real)} training images of class {cf.target}; lower "
                f"subset_size, raise `evaluation.images` or set `shrink_subset: true`"
            )
        made = self.context.features(options.extractor, cf.counterfactual)
        result = kid_features_to_metric(
            made,
            real,
            kid_subset_size=size,
            kid_subsets=options.subsets,
            kid_kernel="poly",
            kid_kernel_poly_degree=options.degree,
            rng_seed=options.seed,
            verbose=False,
        )
        return {options.columns()[0].name: result[KEY_METRIC_KID_MEAN]}

    def notes(self, cf: CounterfactualSet) -> dict[str, str]:
        """Says so when the subset was shrunk."""
        options: Options = self.options
        if not options.shrink_subset:
            return {}
        real = len(self.context.reference_features(options.extractor, cf.target))
        size = min(options.subset_size, len(cf), real)
        if size == options.subset_size:
            return {}
        return {options.columns()[0].name: f"subset size {size}, not {options.subset_size}"}
