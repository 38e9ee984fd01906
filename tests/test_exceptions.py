"""Every exception from a security rule says why it is one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXCEPTION = re.compile(r"# noqa: (?P<codes>[A-Z0-9, ]*\bS\d{3}\b[A-Z0-9, ]*)(?P<reason>.*)$", re.MULTILINE)


def test_exceptions_from_security_rules_have_reasons():
    found = {}
    for folder in ("api", "catalog", "compression", "levity", "workers"):
        for file in (ROOT / folder).rglob("*.py"):
            for match in EXCEPTION.finditer(file.read_text()):
                found[f"{file.relative_to(ROOT)}: {match['codes']}"] = match["reason"].strip("- ")
    assert found
    assert [place for place, reason in found.items() if len(reason) < 5] == []
