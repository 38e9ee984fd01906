"""Digest fields of HTTP messages (RFC 9530), for SHA-256."""

from __future__ import annotations

import base64
import binascii

from api.errors import InvalidField

_ALGORITHM = "sha-256"


def parse(field: str | None) -> str | None:
    """The SHA-256 in a Content-Digest, as hexadecimal digits; None where the field names none.

    >>> parse("sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:")
    'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    """
    for member in (field or "").split(","):
        name, _, value = member.strip().partition("=")
        if name.lower() != _ALGORITHM:
            continue
        value = value.partition(";")[0].strip()
        try:
            digest = base64.b64decode(value[1:-1], validate=True)
        except binascii.Error:
            digest = b""
        if value[:1] + value[-1:] != "::" or len(digest) != 32:
            raise InvalidField("/header/content-digest", "Give the digest as sha-256=:base64 of its 32 bytes:.")
        return digest.hex()
    return None


def field(sha256: str) -> str:
    """The value of a Content-Digest or Repr-Digest."""
    return f"{_ALGORITHM}=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
