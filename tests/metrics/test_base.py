from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from counterlens.errors import UserError
from counterlens.metrics.base import (
    CounterfactualSet,
    MetricContext,
    NotAvailable,
    quantise,
    require_query,
)
from counterlens.runtime import files


def write_set(path: Path, /, **tensors: np.ndarray) -> None:
    metadata = {"experiment": "digits", "method": "c3lt", "source": "4", "target": "9"}
    files.save_tensors(Path(f"{path}.safetensors"), tensors, metadata)
    files.write_parquet(Path(f"{path}.parquet"), pd.DataFrame({"image": [5, 8]}))


def images(seed: int = 0, count: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 1, 4, 4), dtype=np.float32)


def test_load_reads_arrays_extras_metadata_and_table(tmp_path: Path) -> None:
    path = tmp_path / "4_to_9"
    write_set(path, query=images(1), counterfactual=images(2), mask=images(3))
    cf = CounterfactualSet.load(path)
    assert (cf.experiment, cf.method, cf.source, cf.target) == ("digits", "c3lt", 4, 9)
    assert cf.paired and len(cf) == 2
    np.testing.assert_array_equal(require_query(cf).numpy(), images(1))
    np.testing.assert_array_equal(cf.counterfactual.numpy(), images(2))
    assert set(cf.extras) == {"mask"}
    assert list(cf.table["image"]) == [5, 8]


def test_a_path_may_be_kept_for_the_first_images_only(tmp_path: Path) -> None:
    path = tmp_path / "4_to_9"
    short = images(count=1)
    write_set(path, counterfactual=images(), path=short[:, None], path_features=short[:, 0])
    cf = CounterfactualSet.load(path)
    assert len(cf.extras["path"]) == len(cf.extras["path_features"]) == 1


def test_errors_are_the_queries_of_another_class_than_the_source(make_set) -> None:
    table = pd.DataFrame({"image": range(5), "label": [1, 1, 0, 2, 0]})
    query = torch.from_numpy(images(count=5))
    cf = make_set(query, query, source=0, target=1, table=table)
    assert cf.errors().tolist() == [True, True, False, True, False]
    assert make_set(query, query).errors().tolist() == [False] * 5  # nothing is said of labels
    assert make_set(query, source=0, table=table).errors().tolist() == [False] * 5  # no queries


def test_a_selection_keeps_rows_together(make_set) -> None:
    query, counterfactual = (torch.from_numpy(images(seed, 5)) for seed in (1, 2))
    table = pd.DataFrame({"image": [10, 11, 12, 13, 14]})
    extras = {"latent": torch.arange(5), "path": torch.arange(3)[:, None]}  # of the first three
    cf = make_set(counterfactual, query, table=table, extras=extras, source=4, target=9)
    part = cf.select(np.array([False, True, True, False, True]))
    assert torch.equal(part.counterfactual, counterfactual[[1, 2, 4]])
    assert torch.equal(require_query(part), query[[1, 2, 4]])
    assert part.extras["latent"].tolist() == [1, 2, 4]
    assert part.extras["path"].tolist() == [[1], [2]]
    assert part.table["image"].tolist() == [11, 12, 14] and part.table.index.tolist() == [0, 1, 2]
    assert (part.source, part.target, part.method) == (4, 9, cf.method)
    unpaired = make_set(counterfactual, table=table).select(np.array([True] + [False] * 4))
    assert not unpaired.paired and len(unpaired) == 1


def test_a_set_without_queries_is_unpaired(tmp_path: Path) -> None:
    path = tmp_path / "4_to_9"
    write_set(path, counterfactual=images())
    cf = CounterfactualSet.load(path)
    assert not cf.paired
    with pytest.raises(ValueError, match="has no queries"):
        require_query(cf)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"query": images()}, "counterfactual is missing"),
        ({"counterfactual": images(count=3)}, "3 images"),
        ({"counterfactual": images() + 0.5}, r"leaves \[0, 1\]"),
        ({"counterfactual": images() * np.float32("nan")}, r"leaves \[0, 1\]"),
        ({"counterfactual": images(), "query": images()[:, :, :3]}, "query is"),
        ({"counterfactual": images(), "mask": images(count=3)}, "mask has 3 rows"),
    ],
)
def test_a_set_that_contradicts_itself_is_named(
    tmp_path: Path, tensors: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "4_to_9"
    write_set(path, **tensors)
    with pytest.raises(UserError, match=message) as error:
        CounterfactualSet.load(path)
    assert "4_to_9.safetensors" in str(error.value)


def test_a_missing_set_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        CounterfactualSet.load(tmp_path / "4_to_9")


def test_quantise_gives_an_8_bit_image_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantise(levels.float() / 255), levels)
    assert quantise(torch.tensor([0.5 / 255 + 1e-4])).item() == 1


def test_probabilities_do_not_depend_on_the_batch_size(bright, random_set) -> None:
    x = random_set(11).counterfactual
    whole = MetricContext(bright).probabilities(x)
    parts = MetricContext(bright, batch_size=2).probabilities(x)
    assert whole.shape == (11, 3)
    torch.testing.assert_close(whole.sum(1), torch.ones(11))
    torch.testing.assert_close(whole, parts)


def test_probabilities_of_no_image(bright, random_set) -> None:
    assert MetricContext(bright).probabilities(random_set(0).counterfactual).shape == (0, 3)


def test_features_are_computed_once_per_content(bright, pixel_extractor, random_set) -> None:
    extractor = pixel_extractor()
    context = MetricContext(bright, {"judge": extractor})
    first, second = random_set(seed=1).counterfactual, random_set(seed=2).counterfactual
    once = context.features("judge", first)
    assert torch.equal(context.features("judge", first.clone()), once)
    assert len(extractor.calls) == 1
    assert not torch.equal(context.features("judge", second), once)
    assert len(extractor.calls) == 2


def test_reference_features_are_kept_between_jobs(
    bright, pixel_extractor, random_set, tmp_path: Path
) -> None:
    train = quantise(random_set(9).counterfactual)

    def context(extractor: object) -> MetricContext:
        return MetricContext(
            bright, {"judge": extractor}, reference=lambda label: train + label, cache=tmp_path
        )

    first, second, changed = (pixel_extractor() for _ in range(3))
    features = context(first).reference_features("judge", 1)
    assert torch.equal(context(second).reference_features("judge", 1), features)
    assert (len(first.calls), len(second.calls)) == (1, 0)
    context(second).reference_features("judge", 2)
    assert len(second.calls) == 1
    changed.fingerprint = "other weights"
    context(changed).reference_features("judge", 1)
    assert len(changed.calls) == 1


def test_only_inception_may_carry_the_standard_name(bright, pixel_extractor) -> None:
    context = MetricContext(
        bright, {"inception": pixel_extractor(), "other": pixel_extractor(standard=True)}
    )
    for name in ("inception", "other"):
        with pytest.raises(UserError, match="only an oracle of kind 'inception'"):
            context.extractor(name)


def test_an_extractor_without_weights_is_not_available(bright, pixel_extractor) -> None:
    missing = pixel_extractor(standard=True, unavailable="inception-v3-fid: no network")
    context = MetricContext(bright, {"inception": missing}, reference=lambda label: 1 / 0)
    with pytest.raises(NotAvailable) as error:
        context.reference_features("inception", 1)
    assert error.value.reason == "inception-v3-fid: no network"


def test_an_unknown_oracle_is_a_user_error(bright) -> None:
    with pytest.raises(UserError, match="oracle judge"):
        MetricContext(bright).oracle("judge")
