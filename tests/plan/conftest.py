"""The plan of this repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterlens.plan.plan import Plan


@pytest.fixture
def project(root: Path) -> Plan:
    return Plan({})
