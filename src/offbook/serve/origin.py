"""Does a request come from a page of this server, under a name of this machine?

A web page that a user visits can send requests to this machine, and a name that its owner controls
can lead here (DNS rebinding). Browsers say from which page a request comes (Origin) and under which
name they have found the server (Host); no page can change either. So names that are not this
machine's are refused, and so are requests of other pages.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::\d{1,5})?", re.IGNORECASE)
LOCAL_NAMES = frozenset({"localhost"})
# Of every answer, besides its Content-Security-Policy.
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(address).is_loopback


def wrong_host(
    hosts: Sequence[str], names: Collection[str] = LOCAL_NAMES, any_address: bool = False
) -> bool:
    """Whether a request is for another server.

    Args:
        hosts: its Host headers.
        names: of this server, in lower case.
        any_address: whether other addresses than loopback ones are this server's. An address is
            no name that could lead elsewhere.
    """
    match = HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
    if match is None:
        return True
    host = match[1].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host not in names
    return not (any_address or address.is_loopback)


def wrong_origin(hosts: Sequence[str], origins: Sequence[str]) -> bool:
    """Whether a request is from another page, by its Host and Origin headers."""
    own = {f"{scheme}://{host.lower()}" for host in hosts for scheme in ("http", "https")}
    return any(origin.lower() not in own for origin in origins)  # https behind a proxy
