"""Names and addresses of machines."""

from __future__ import annotations

import ipaddress
import re

_PASSWORD = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def ip_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a text writes out, with or without an IPv6 address's brackets; None for a name."""
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, which no other machine reaches."""
    name = host.lower().rstrip(".")
    address = ip_address(name)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


def without_passwords(text: str) -> str:
    """Return text with the names and passwords in its addresses replaced, as it may be logged and shown."""
    return _PASSWORD.sub("…", text)
