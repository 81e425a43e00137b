"""A hub that does not answer is found out at once, and only then."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loopback import serving
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


def test_who_takes_the_call_and_is_silent_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.getsockname()[1]}"
        hub.resolve()
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_somebody_at_the_address_a_proxy_or_the_users_word_leaves_it() -> None:
    with serving() as server:
        os.environ["HF_ENDPOINT"] = server.address
        hub.resolve()
        assert "HF_HUB_OFFLINE" not in os.environ
        # what asks for a certificate, or speaks something else, is there
        os.environ["HF_ENDPOINT"] = server.address.replace("http:", "https:")
        hub.resolve()
    assert "HF_HUB_OFFLINE" not in os.environ
    os.environ["HTTPS_PROXY"] = "http://127.0.0.1:9"
    hub.resolve()
    assert "HF_HUB_OFFLINE" not in os.environ
    os.environ["HF_HUB_OFFLINE"] = "0"
    hub.resolve()
    assert os.environ["HF_HUB_OFFLINE"] == "0"


@pytest.mark.parametrize("key", ["", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_the_cache_is_where_the_client_keeps_it(key: str, tmp_path: Path) -> None:
    script = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
    for name in names:
        os.environ.pop(name, None)
    if key:
        os.environ[key] = str(tmp_path)
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert str(hub.cache()) == told.stdout.strip()
