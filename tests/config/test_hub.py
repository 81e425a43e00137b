"""A hub that does not answer is found out at once, and only then."""

from __future__ import annotations

import os
import socket

import pytest

from vlatrain.config import hub


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if "proxy" not in k.lower()})
    os.environ.pop("HF_HUB_OFFLINE", None)


def test_nobody_at_the_address_means_offline() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{probe.getsockname()[1]}"  # bound, and nobody listens
        hub.resolve()
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_somebody_at_the_address_a_proxy_or_the_users_word_leaves_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.getsockname()[1]}"
        hub.resolve()
    assert "HF_HUB_OFFLINE" not in os.environ
    os.environ["HTTPS_PROXY"] = "http://127.0.0.1:9"
    hub.resolve()
    assert "HF_HUB_OFFLINE" not in os.environ
    os.environ["HF_HUB_OFFLINE"] = "0"
    hub.resolve()
    assert os.environ["HF_HUB_OFFLINE"] == "0"
