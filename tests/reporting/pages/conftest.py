from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _with_reports(reports: None) -> None:
    """These are tests of reports."""
