"""The hub, before its client is imported: whether it answers, and what of it is in the cache.

Where nothing answers at its address, the client is told to be offline: it then looks in its cache and says at once what
is missing, where it would first try again for a minute.
"""

from __future__ import annotations

import os
import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

TIMEOUT = 10.0  # seconds
MAIN = "main"  # the revision where none is named
RUN = "hub:"  # what a run of the hub begins with
NAME = r"[\w.-]+/[\w.-]+"  # OWNER/NAME, as a pattern


def resolve() -> None:
    """Set `HF_HUB_OFFLINE=1` if the hub does not answer, unless the user has set it or a proxy may know the way."""
    if "HF_HUB_OFFLINE" in os.environ or getproxies():
        return
    if not answers(endpoint()):
        os.environ["HF_HUB_OFFLINE"] = "1"


def endpoint() -> str:
    """The hub's address."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def answers(address: str) -> bool:
    """Whether somebody says something at an address, whatever it is. Who takes the call and is silent does not answer."""
    found = urlsplit(address)
    kind = HTTPConnection if found.scheme == "http" else HTTPSConnection
    connection = kind(found.hostname or "", found.port, timeout=TIMEOUT)
    try:
        connection.request("HEAD", found.path or "/")
        connection.getresponse()
    except (HTTPException, ssl.SSLError) as error:
        # what has a certificate of its own the client may know; who takes the call and hangs up is gone
        return not isinstance(error, ConnectionError)
    except OSError:  # a timeout is one
        return False
    finally:
        connection.close()
    return True


def cache() -> Path:
    """The folder where the client keeps what it has fetched, by the environment variables that it goes by."""
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(home, "huggingface"))
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(own)))


def in_cache(path: Path) -> bool:
    """Whether a file or folder is in the client's cache."""
    return "snapshots" in path.parts and any(part.startswith("models--") for part in path.parts)


def commit(name: str, revision: str | None = None, kind: str = "models") -> str | None:
    """The commit that a branch or a tag had when it was last asked for; None: it never was.

    Args:
        name: `owner/name`.
        revision: the branch or tag; None: the main branch.
        kind: `models` or `datasets`.
    """
    try:
        return (_folder(name, kind) / "refs" / (revision or MAIN)).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def cached(name: str, revision: str | None = None) -> Path | None:
    """The folder of a repository of models as it was last fetched; None: it is not in the cache.

    Args:
        name: `owner/name`.
        revision: a branch, a tag or a commit; None: the main branch.
    """
    found = _folder(name, "models") / "snapshots" / (commit(name, revision) or revision or "")
    return found if found.name != "snapshots" and found.is_dir() else None


def _folder(name: str, kind: str) -> Path:
    return cache() / f"{kind}--{name.replace('/', '--')}"
