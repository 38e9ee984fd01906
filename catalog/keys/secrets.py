"""The form of an API key, and what is kept of it.

A key is `lv_<prefix>_<secret>`: 48 public random bits to find it by, 256 secret ones. What is kept is its SHA-256. A
slow hash with salt, as for passwords, would buy nothing: nobody can try 2^256 secrets however fast a hash is, and every
request would pay for it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from hmac import compare_digest

KEY_MARK = "lv_"
"""What every key begins with."""
_FORM = re.compile(r"lv_([0-9a-f]{12})_[A-Za-z0-9_-]{43}", re.ASCII)


@dataclass(frozen=True)
class NewKey:
    """A key just made."""

    text: str = field(repr=False)
    """Shown to its owner once."""
    prefix: str
    sha256: str


def new_key() -> NewKey:
    """A key of 256 random bits."""
    prefix = secrets.token_hex(6)
    text = f"lv_{prefix}_{secrets.token_urlsafe(32)}"
    return NewKey(text, prefix, sha256_of(text))


def prefix_of(text: str) -> str | None:
    """The public part; None for what cannot be a key, which then need not be looked for."""
    found = _FORM.fullmatch(text)
    return None if found is None else found[1]


def sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def matches(text: str, sha256: str) -> bool:
    """Whether `text` is the key with this hash, in a time that does not depend on where they differ."""
    return compare_digest(sha256_of(text), sha256)
