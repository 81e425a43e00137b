"""The hub, before its client is imported.

Where nothing answers at its address, the client is told to be offline: it then looks in its cache and says at once what
is missing, where it would first try again for a minute.
"""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

TIMEOUT = 5.0  # seconds


def resolve() -> None:
    """Set `HF_HUB_OFFLINE=1` if the hub cannot be reached, unless the user has set it or a proxy may know the way."""
    if "HF_HUB_OFFLINE" in os.environ or getproxies():
        return
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((address.hostname or "", address.port or 443), TIMEOUT).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
