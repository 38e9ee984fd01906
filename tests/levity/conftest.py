from __future__ import annotations

import pytest

from levity import Levity
from tests.levity.stub import Stub


@pytest.fixture
def stub():
    with Stub() as server:
        yield server


@pytest.fixture
def levity(stub, monkeypatch):
    monkeypatch.setattr("levity._transport._FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("levity._transport._RESUME_PAUSE_SECONDS", 0.001)
    with Levity(stub.url, timeout=5) as client:
        yield client
