"""The hub's client, while it is asked for models and data sets: how long it may be kept waiting, and what its errors mean.

By itself it waits for ever for some answers, and tries again for minutes for others.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vlatrain.config import hub

WAIT = 8.0  # seconds that a request waits for the next sign, where HF_HUB_DOWNLOAD_TIMEOUT does not say it
TRIES = 1.5  # times this without a sign from the hub no request is begun: silence ends after 30 s, tries and pauses together
LOG_IN = "log in with hf auth login, or set HF_TOKEN"


class SilentHubError(OSError):
    """The hub has taken requests and answered none."""


class _Watch:
    """When the hub was first asked since its last sign, over all threads."""

    def __init__(self) -> None:
        self.wait = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or WAIT)
        self.since: float | None = None
        self.most: dict[str, int] = {}  # by address, bytes of what is there that have come

    def asked(self, request: Any) -> None:
        """A request is about to be sent."""
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        if now - self.since > TRIES * self.wait:
            raise SilentHubError(f"nothing has come for {now - self.since:.0f} s")
        own = request.extensions.get("timeout") or {}
        limits = {kind: min(own.get(kind) or self.wait, self.wait) for kind in ("connect", "read", "write")}
        request.extensions["timeout"] = {**own, **limits}

    def answered(self, response: Any) -> None:
        """The head of an answer is there. It is a sign where nothing follows; else what has not come before is one."""
        if response.request.method == "HEAD" or response.status_code >= 300:
            self.since = None
        kinds = importlib.import_module(
            type(response).__module__.partition(".")[0]
        )  # httpx, or what the client has instead
        stream, pieces = response.stream, self._noted(response.stream, response.request)
        own = {"__iter__": lambda _: pieces, "close": lambda _: stream.close()}
        response.stream = type("Noted", (kinds.SyncByteStream,), own)()

    def _noted(self, stream: Any, request: Any) -> Iterator[bytes]:
        """The pieces of an answer. The client forgets a piece of less than 10 MB that breaks off, and asks for it again."""
        address, asked = str(request.url), re.match(r"bytes=(\d+)-", request.headers.get("range", ""))
        at = int(asked[1]) if asked else 0
        for piece in stream:
            at += len(piece)
            if at > self.most.get(address, 0):
                self.since, self.most[address] = None, at
            yield piece
        self.since = None


@contextmanager
def watched() -> Iterator[None]:
    """While inside, the hub's client gives up after half a minute without a sign from the hub, with a `SilentHubError`."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    before: Callable[[], Any] = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    watch = _Watch()

    def made() -> Any:
        client = before()
        hooks = {"request": watch.asked, "response": watch.answered}
        client.event_hooks = {kind: [*client.event_hooks.get(kind, ()), hook] for kind, hook in hooks.items()}
        return client

    set_client_factory(made)
    try:
        yield
    finally:
        set_client_factory(before)


@contextmanager
def without_bar() -> Iterator[None]:
    """Small files are fetched without a progress bar, as are those that are there."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown and sys.stderr.isatty():
            enable_progress_bars()


def reason(
    error: BaseException, name: str, revision: str | None = None, what: str = "", kind: str = "model"
) -> str | None:
    """Why the hub does not give a repository, in one line; None: what was raised is no error of the hub's client.

    Args:
        error: what was raised.
        name: the repository.
        revision: the revision that was asked for.
        what: what of it was asked for.
        kind: `model` or `data`: what begins the options for it; `run`: one that has none.
    """
    from huggingface_hub import errors

    causes = list(_causes(error))

    def is_one(*kinds: type) -> bool:
        return any(isinstance(one, kinds) for one in causes)

    address = hub.endpoint()
    if silent := next((one for one in causes if isinstance(one, SilentHubError)), None):
        return f"{address} has stopped answering ({silent}); run it again: files that have come whole are kept"
    if is_one(errors.GatedRepoError):  # a kind of the next
        page = f"{address}/{'datasets/' if kind == 'data' else ''}{name}"
        return f"{name} is gated: ask for access at {page}, and {LOG_IN}"
    if is_one(errors.RepositoryNotFoundError):
        return f"{address} has no {name}, or it is private: {LOG_IN}"
    if is_one(errors.RevisionNotFoundError):
        return f"{name} has no revision {revision or hub.MAIN}{'' if kind == 'run' else f' ({kind}.revision)'}"
    status = next((code for one in causes if (code := _status(one))), 404)
    if status != 404:  # a file that is not there: the client says which
        return f"{address} refuses {name} ({status}){f': {LOG_IN}' if status in (401, 403) else ''}"
    if is_one(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) or any(map(_is_silence, causes)):
        at = f" at revision {revision}" if revision else ""
        return (
            f"{address} does not answer, or HF_HUB_OFFLINE is set, and the cache lacks {what}{name}{at} ({hub.cache()})"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it: a library may have made others of it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: BaseException) -> int | None:
    """The status of the answer that an error is about, where it is a refusal."""
    found = getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) and found >= 400 else None


def _is_silence(error: BaseException) -> bool:
    """Whether the client's transport has had no connection, or no answer in time."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return type(error).__module__.startswith("httpx") and bool(names & {"TimeoutException", "ConnectError"})
