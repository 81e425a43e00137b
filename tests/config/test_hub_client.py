"""The hub's client waits half a minute for a hub that falls silent, and its errors are one line each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, errors, hf_hub_download
from huggingface_hub.utils import _http

from tests.loopback import Hub, client_of, serving
from vlatrain.config import hub_client
from vlatrain.config.hub_client import SilentHubError, reason, watched

LARGE = "weights.bin"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / LARGE).write_bytes(bytes(range(256)) * 100)
    with serving() as found:
        client_of(found, tmp_path / "home", monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
        found.add("me/tiny", folder)
        yield found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the time, of the client's own pauses too."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 100))
    monkeypatch.setattr(hub_client, "WAIT", 0.08)


def spent(server: Hub, name: str = LARGE) -> float:
    """Seconds until a file is given up."""
    begun = time.monotonic()
    with watched(), pytest.raises((SilentHubError, errors.LocalEntryNotFoundError)) as error:
        hf_hub_download("me/tiny", name)
    assert reason(error.value, "me/tiny"), error.value
    return time.monotonic() - begun


@pytest.mark.parametrize("silent", [pytest.param("/me/tiny/resolve", marks=pytest.mark.slow), "stall"])
@pytest.mark.usefixtures("impatient")
def test_silence_is_given_up(silent: str, server: Hub) -> None:
    server.silent, server.stalls = ((), {LARGE: 5000}) if silent == "stall" else ((silent,), {})
    assert spent(server) < 1.5
    server.silent, server.stalls = (), {}
    with watched():
        assert Path(hf_hub_download("me/tiny", LARGE)).stat().st_size == 25600


@pytest.mark.slow
@pytest.mark.parametrize("silent", ["/me/tiny/resolve", "stall"])
def test_after_half_a_minute_at_most(silent: str, server: Hub) -> None:
    server.silent, server.stalls = ((), {LARGE: 5000}) if silent == "stall" else ((silent,), {})
    assert 8 < spent(server) < 32


@pytest.mark.slow
def test_what_is_slow_is_not_silent(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "WAIT", 0.2)
    server.pace = 0.04  # seconds between pieces: in all far longer than it waits for one
    begun = time.monotonic()
    with watched():
        hf_hub_download("me/tiny", LARGE)
    assert time.monotonic() - begun > 2 * 0.2


def test_the_client_is_as_it_was_afterwards(server: Hub) -> None:
    def own() -> object:
        return before()

    before = _http._GLOBAL_CLIENT_FACTORY
    _http.set_client_factory(own)  # type: ignore[arg-type]
    try:
        with watched():
            assert HfApi().repo_info("me/tiny").sha
        assert _http._GLOBAL_CLIENT_FACTORY is own
    finally:
        _http.set_client_factory(before)


def test_what_is_no_error_of_the_hub_has_no_reason() -> None:
    assert reason(ValueError("of somebody else"), "me/tiny") is None
