"""Seeds are the same for ever, and different for different names."""

from __future__ import annotations

import hashlib

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterlens.runtime.seeding import derive_seed, generator, image_generators


def test_seeds_never_change() -> None:
    """Fixed numbers: a change of these is a change of every result."""
    assert derive_seed(85, "digits", "classifier") == 84923304185598904
    assert derive_seed(0) == 3456079177858693020
    assert derive_seed(85, "digits", "explain pgd 9", 17) == 3360101082566138845


def test_a_seed_is_half_of_a_sha256() -> None:
    digest = hashlib.sha256(b"7\x00a\x003").hexdigest()
    assert derive_seed(7, "a", 3) == int(digest[:16], 16) // 2


names = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5), max_size=3
)


@settings(max_examples=200, deadline=None)
@given(st.tuples(st.integers(0, 9), names), st.tuples(st.integers(0, 9), names))
def test_equal_names_and_only_those_give_equal_seeds(first, second) -> None:
    seeds = [derive_seed(root, *words) for root, words in (first, second)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert (seeds[0] == seeds[1]) == (first == second)


def test_the_order_and_the_borders_of_names_matter() -> None:
    assert derive_seed(1, "a", "b") != derive_seed(1, "b", "a")
    assert derive_seed(1, "ab", "c") != derive_seed(1, "a", "bc")
    assert derive_seed(1, "1") == derive_seed(1, 1)  # written alike, seeded alike


def test_generators_repeat_themselves_and_leave_the_global_one_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second, other = (torch.rand(9, generator=generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.rand(3), expected)
    generator(2**63 - 1)  # the largest seed there is


def test_an_image_has_its_own_randomness() -> None:
    def drawn(images: list[int], stage: str = "explain") -> dict[int, list[float]]:
        found = image_generators(85, "digits", stage, images)
        return {
            image: torch.rand(4, generator=one).tolist()
            for image, one in zip(images, found, strict=True)
        }

    whole = drawn([3, 1, 2, 100])
    assert drawn([2]) | drawn([100, 1]) | drawn([3]) == whole
    assert len({tuple(values) for values in whole.values()}) == 4
    assert drawn([3], "other") != drawn([3])
    expected = torch.rand(4, generator=generator(derive_seed(85, "digits", "explain", 3)))
    assert whole[3] == expected.tolist()
    assert image_generators(85, "digits", "explain", []) == []
