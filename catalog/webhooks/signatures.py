"""Standard Webhooks signatures, symmetric kind (https://www.standardwebhooks.com, version 1.0.0)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"
_NEW_SECRET_BYTES = 32
_SECRET_BYTES = range(24, 65)


def new_secret() -> str:
    """A secret of 256 bits, as receivers are given it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_NEW_SECRET_BYTES)).decode()


def secret_problem(secret: str) -> str | None:
    """Why a secret of a caller's own cannot be used, or None."""
    try:
        usable = secret.startswith(PREFIX) and len(_key(secret)) in _SECRET_BYTES
    except (ValueError, binascii.Error):
        usable = False
    return None if usable else f"a secret is {PREFIX} and the base64 of 24 to 64 random bytes"


def signature_header(secrets_: Sequence[str], *, message_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each secret, the newest first.

    Args:
        secrets_: Each `whsec_` and base64.
        message_id: The header `webhook-id`.
        timestamp: The header `webhook-timestamp`, in seconds since 1970.
        body: The body as it is sent.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    macs = (hmac.digest(_key(secret), signed, hashlib.sha256) for secret in secrets_)
    return " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs)


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
