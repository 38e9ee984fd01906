"""Dockerfile and docker-compose.yml, by their own tools and by what they promise."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import tomllib

import pytest
import yaml

from catalog.settings import Settings
from tests.deploy import compose
from tests.deploy.compose import ROOT
from tests.deploy.tools import run

OURS = ("api", "worker-cpu", "worker-io", "worker-gpu", "migrate", "operator")
SERVICES = compose.services()


def test_hadolint_has_nothing_to_say():
    assert run("hadolint", "Dockerfile") == ""


def test_compose_takes_its_file_and_reads_it_as_these_tests_do(monkeypatch):
    for name in ("LEVITY_SANDBOX", "LEVITY_ALLOWED_HOSTS", "LEVITY_PORT", "LEVITY_GPUS"):
        monkeypatch.delenv(name, raising=False)
    read = json.loads(run("docker-compose", "--profile", "*", "config", "--format", "json"))["services"]
    assert set(read) == set(SERVICES)
    for name, service in SERVICES.items():
        # What is printed is a file again, in which a dollar stands twice.
        assert read[name].get("environment", {}) == service.get("environment", {}), name
        assert [word.replace("$$", "$") for word in read[name].get("command") or []] == service.get("command", []), name


def test_images_are_made_of_what_the_repository_has():
    dockerfile = (ROOT / "Dockerfile").read_text()
    stages = re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE)
    for service in OURS:
        assert SERVICES[service].get("build", {}).get("target", "worker-cpu") in stages
    copied = {name for line in re.findall(r"^COPY (?!--)(.+)$", dockerfile, re.MULTILINE) for name in line.split()[:-1]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for names in re.findall(r"'\.\[(.+?)\]'", dockerfile):
        assert set(names.split(",")) <= set(extras)


def test_no_index_is_named():
    for path in ("Dockerfile", "docker-compose.yml"):
        assert not re.search(r"https?://(?!127\.0\.0\.1|s3:)", (ROOT / path).read_text())


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_is_confined_and_watched(service):
    settings = SERVICES[service]
    assert settings["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in settings["security_opt"]
    assert settings.get("privileged", False) is False
    if service == "s3-bucket":
        return  # it makes one folder, as root, without a network
    assert settings["read_only"] is True
    assert settings["networks"][0] == "inside"
    assert "healthcheck" in settings


@pytest.mark.parametrize("service", OURS)
def test_no_registry_is_asked_for_our_images(service):
    assert SERVICES[service]["pull_policy"] == "never"
    built = {settings["image"] for settings in SERVICES.values() if "build" in settings}
    assert SERVICES[service]["image"] in built


@pytest.mark.parametrize("service", OURS)
def test_settings_exist_and_hold_no_secret(service):
    environment = SERVICES[service]["environment"]
    known = {f"LEVITY_{name.upper()}" for name in Settings.model_fields}
    for name, value in environment.items():
        if name.startswith("LEVITY_"):
            assert name.removesuffix("_FILE") in known, name
        if name.endswith("_FILE"):
            secret = value.removeprefix(f"{compose.SECRETS}/")
            assert secret in SERVICES[service]["secrets"]
    assert not re.search(r"//[^@/]+:[^@/]+@", json.dumps(environment)), "a URL with a password"


def test_every_secret_is_made_once(tmp_path):
    named = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["secrets"]
    script = ROOT / "deploy/make-secrets.sh"
    folder = tmp_path / "secrets"
    for _ in range(2):
        subprocess.run([script, folder], check=True, timeout=10)
        made = {path.name: path.read_text() for path in folder.iterdir()}
        assert {f"./secrets/{name}" for name in made} == {secret["file"] for secret in named.values()}
    assert all(re.fullmatch("[0-9a-f]{48}", secret) for secret in made.values())
    assert len(set(made.values())) == len(made)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = dict(made)
    subprocess.run([script, folder], check=True, timeout=10)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_a_stop_takes_no_longer_than_compose_waits():
    for service in ("worker-cpu", "worker-io", "worker-gpu"):
        seconds = int(SERVICES[service]["stop_grace_period"].removesuffix("s"))
        assert seconds > Settings.model_fields["drain_seconds"].default + Settings.model_fields["grace_seconds"].default
