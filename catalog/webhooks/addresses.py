"""Where webhooks may go: which URLs are taken, and which addresses are connected to.

A URL's name is no protection, since a name can lead to one address when it is registered and to another when it is
used. So the sender asks `refusal` about the very address it connects to; what is asked at registration only spares
callers a webhook that never works.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_core import Url, ValidationError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_CHARACTERS = 2000
_MAX_HOST_CHARACTERS = 255
# Where IPv6 addresses are given out. All that embeds an IPv4 address lies outside (mapped, compatible, NAT64) or is
# named below (6to4); Python knows the rest that is not global (Teredo, documentation, benchmarking).
_IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")
_EMBEDDING = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv4Network("192.88.99.0/24"))
_LOCAL_NAMES = ("localhost", "local", "internal", "home.arpa")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FIRST_HIGH_PORT = 1024


class UrlRefused(ValueError):
    """A URL that no webhook can have; the message says why and what would do."""


@dataclass(frozen=True)
class Policy:
    """What an operator allows beyond public addresses over TLS."""

    allow_http: bool = False
    allowed_networks: tuple[Network, ...] = ()


@dataclass(frozen=True)
class Target:
    """A webhook's URL, taken apart. All parts are ASCII."""

    url: str
    scheme: str
    host: str
    """Name or address, without brackets."""
    port: int
    path: str
    """With the query: the request's target."""

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str) -> Target:
    """Take a URL apart as browsers do (WHATWG): `http://0x7f.1` is `http://127.0.0.1/`.

    Raises:
        UrlRefused: It is no URL, has credentials or a fragment, or a port that webhooks do not use.
    """
    try:
        parsed = Url(url)
    except ValidationError as error:
        raise UrlRefused(f"this is no URL: {error.errors()[0]['msg']}") from error
    if parsed.scheme not in _DEFAULT_PORTS or not parsed.host or parsed.port is None:
        raise UrlRefused("a webhook's URL begins with https://")
    if parsed.username is not None or parsed.password is not None:
        raise UrlRefused("a webhook's URL has no credentials: verify the signature instead")
    if parsed.fragment is not None:
        raise UrlRefused("a webhook's URL has no fragment")
    if parsed.port not in _DEFAULT_PORTS.values() and parsed.port < _FIRST_HIGH_PORT:
        raise UrlRefused("webhooks go to port 80, 443, or 1024 and above")
    text = str(parsed)
    if len(text) > MAX_URL_CHARACTERS or len(parsed.host) > _MAX_HOST_CHARACTERS:
        raise UrlRefused(
            f"a webhook's URL has {MAX_URL_CHARACTERS} characters at most, and its host {_MAX_HOST_CHARACTERS}"
        )
    path = (parsed.path or "/") + (f"?{parsed.query}" if parsed.query is not None else "")
    return Target(text, parsed.scheme, parsed.host.strip("[]"), parsed.port, path)


def check(url: str, policy: Policy) -> Target:
    """`parse`, and refuse what can be seen to lead nowhere that `policy` allows.

    Raises:
        UrlRefused: See `parse`; or it is not https, or names a local host or an address that is not public.
    """
    target = parse(url)
    if target.scheme != "https" and not policy.allow_http:
        raise UrlRefused("a webhook's URL begins with https:// (LEVITY_WEBHOOK_ALLOW_HTTP would allow http)")
    try:
        address = ipaddress.ip_address(target.host)
    except ValueError:
        name = target.host.rstrip(".").lower()
        local = any(name == suffix or name.endswith(f".{suffix}") for suffix in _LOCAL_NAMES)
        if local and not policy.allowed_networks:
            raise UrlRefused(
                f"{target.host} is a local name; webhooks go to public hosts (LEVITY_WEBHOOK_ALLOWED_NETWORKS "
                "would allow others)"
            ) from None
        return target
    reason = refusal(address, policy.allowed_networks)
    if reason is not None:
        raise UrlRefused(reason)
    return target


def refusal(address: Address, allowed: Sequence[Network]) -> str | None:
    """Why an address must not be connected to, or None when it may."""
    if any(address.version == network.version and address in network for network in allowed):
        return None
    public = address.is_global and not address.is_multicast
    if isinstance(address, ipaddress.IPv6Address):
        public = public and address in _IPV6_UNICAST and address.scope_id is None
    if public and not any(address.version == network.version and address in network for network in _EMBEDDING):
        return None
    return f"{address} is not a public address (LEVITY_WEBHOOK_ALLOWED_NETWORKS would allow it)"


def lane_of(url: str) -> str:
    """Scheme, host and port of a URL that was checked, without a usual port. Never fails, unlike `parse`.

    >>> lane_of("https://example.com:8443/hook?a=b")
    'https://example.com:8443'
    """
    return "/".join(url.split("/", 3)[:3])
