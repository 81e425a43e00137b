"""What the table of behaviour finds on disk."""

from __future__ import annotations

import pytest

from tests.injection import rows_fusion


@pytest.fixture(scope="session", autouse=True)
def _sources() -> None:
    rows_fusion.write_all()
