"""Addresses of policy servers."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from act_kit.errors import ConfigError


def check_address(address: str) -> str:
    """Return an address with a host and a port.

    Raises:
        ConfigError: It is none.
    """
    try:
        parts = urlsplit(address)
        is_complete = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        is_complete = False
    if not is_complete or parts.username or parts.password:
        raise ConfigError(f"{address}: expected ws://HOST:PORT or wss://HOST:PORT, such as ws://localhost:8000")
    return address


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
