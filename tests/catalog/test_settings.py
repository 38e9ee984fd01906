"""Settings from variables and from files that variables name."""

from __future__ import annotations

import pytest
from pydantic_settings.exceptions import SettingsError
from sqlalchemy import make_url

from catalog.secret_files import with_password
from catalog.settings import Settings


@pytest.fixture
def secret(tmp_path, monkeypatch):
    def write(setting, content):
        path = tmp_path / setting
        path.write_bytes(content)
        monkeypatch.setenv(f"LEVITY_{setting.upper()}_FILE", str(path))
        return path

    return write


def test_a_setting_may_lie_in_a_file(secret):
    secret("database_url", b"postgresql+psycopg://levity@db/levity\n")
    secret("allowed_hosts", b'["levity.example"]\r\n')
    secret("lease_seconds", b"45")
    settings = Settings()
    assert settings.database_url == "postgresql+psycopg://levity@db/levity"
    assert settings.allowed_hosts == ("levity.example",)
    assert settings.lease_seconds == 45


def test_passwords_go_into_urls_and_nowhere_else(secret, monkeypatch):
    monkeypatch.setenv("LEVITY_DATABASE_URL", "postgresql+psycopg://levity@db:5433/levity?sslmode=require")
    monkeypatch.setenv("LEVITY_BROKER_URL", "rediss://cache:6380/2")
    monkeypatch.setenv("LEVITY_STORE_URL", "s3://bucket")
    hard = "p@ss:w/o?rd #%"
    for setting in ("database_password", "broker_password", "store_secret_access_key"):
        secret(setting, f"{hard}\n".encode())
    secret("store_access_key_id", b"AKIA")
    settings = Settings()
    # An independent reader of URLs gets the password back, and all else as it was.
    url = make_url(settings.resolved_database_url)
    assert (url.username, url.password, url.host, url.port, url.database) == ("levity", hard, "db", 5433, "levity")
    assert url.query == {"sslmode": "require"}
    broker = make_url(settings.resolved_broker_url)
    assert (broker.drivername, broker.password, broker.host, broker.port) == ("rediss", hard, "cache", 6380)
    assert settings.store_credentials == {"access_key_id": "AKIA", "secret_access_key": hard}
    assert hard not in repr(settings)
    assert "p@ss" not in settings.model_dump_json()


def test_without_a_password_urls_stay_as_they_are():
    settings = Settings(database_url="sqlite:////tmp/x.db", broker_url="redis://user:known@cache/0")
    assert settings.resolved_database_url == "sqlite:////tmp/x.db"
    assert settings.resolved_broker_url == "redis://user:known@cache/0"
    assert settings.store_credentials == {}
    assert with_password("redis://cache/0", "x") == "redis://:x@cache/0"


def test_a_setting_given_both_ways_is_refused(secret, monkeypatch):
    secret("broker_url", b"redis://one/0")
    monkeypatch.setenv("LEVITY_BROKER_URL", "redis://two/0")
    with pytest.raises(SettingsError, match="LEVITY_BROKER_URL and LEVITY_BROKER_URL_FILE are both set"):
        Settings()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b"\xff", "not UTF-8"), (b"x" * 70_000, "more than 65536 bytes")],
)
def test_a_file_that_cannot_be_taken_is_named(secret, content, message):
    path = secret("database_password", content or b"")
    if content is None:
        path.unlink()
    with pytest.raises(SettingsError, match=f"LEVITY_DATABASE_PASSWORD_FILE: .*{message}"):
        Settings()


def test_arguments_win_over_files(secret):
    secret("broker_url", b"redis://file/0")
    assert Settings(broker_url="redis://argument/0").broker_url == "redis://argument/0"
