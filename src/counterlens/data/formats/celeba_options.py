"""What CelebA (Liu et al., ICCV 2015) calls its 40 attributes, in its own order."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

ATTRIBUTES = (
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
)


def _known(name: str) -> str:
    if name not in ATTRIBUTES:
        raise ValueError(f"unknown attribute; known: {', '.join(ATTRIBUTES)}")
    return name


Attribute = Annotated[str, AfterValidator(_known)]
"""One of CelebA's attributes, as CelebA spells it."""


def class_names(attribute: str) -> tuple[str, str]:
    """The classes without and with an attribute, e.g. `not smiling` and `smiling`."""
    words = attribute.replace("_", " ").lower()
    return (f"not {words}", words)
