"""Linters of deployments, where they are installed: `make lint-deploy` installs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.compose import ROOT


def run(tool: str, *arguments: str, stdin: str | None = None) -> str:
    """What a tool prints; skips the test where it is absent, fails it where the tool finds fault."""
    beside = Path(sys.prefix) / "bin" / tool
    program = str(beside) if beside.exists() else shutil.which(tool)
    if program is None:
        pytest.skip(f"{tool} is not installed; make lint-deploy installs it")
    done = subprocess.run(
        [program, *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
