"""What an operator can set, by environment variables that begin with `LEVITY_`.

Each can be given in a file instead: `LEVITY_DATABASE_PASSWORD_FILE=/run/secrets/database_password`.

Three of them turn the one-machine default into a production deployment: `LEVITY_DATABASE_URL`,
`LEVITY_BROKER_URL` and `LEVITY_STORE_URL`.
"""

from __future__ import annotations

import os
import sys
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, IPvAnyNetwork, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from catalog.secret_files import SecretFiles, with_password
from catalog.webhooks.addresses import Policy

Auth = Literal["none", "keys"]

MIB = 2**20
DAY = 24 * 3600
GIB = 2**30


class Settings(BaseSettings):
    """Every knob with its default, which suits one machine and one user."""

    model_config = SettingsConfigDict(env_prefix="LEVITY_", frozen=True, use_attribute_docstrings=True)

    data_dir: Path = Path("levity-data")
    """Folder for everything that is kept on this machine: database, blobs, queue, staging, work folders."""
    database_url: str = ""
    """SQLAlchemy URL; empty means SQLite in the data folder. PostgreSQL: `postgresql+psycopg://user@host/name`."""
    database_password: SecretStr = SecretStr("")
    """Password of the user in `database_url`, for URLs that hold none."""
    broker_url: str = ""
    """Celery broker; empty means files in the data folder. Redis: `redis://host:6379/0`."""
    broker_password: SecretStr = SecretStr("")
    """Password of the broker, for URLs that hold none."""
    store_url: str = ""
    """Where blobs live; empty means a folder in the data folder. S3-compatible: `s3://bucket/prefix`, with the
    `AWS_*` variables for credentials, region and endpoint."""
    store_access_key_id: SecretStr = SecretStr("")
    """Access key of an S3-compatible store; empty leaves credentials to the `AWS_*` variables."""
    store_secret_access_key: SecretStr = SecretStr("")
    """Secret key that belongs to `store_access_key_id`."""
    migrate: bool = True
    """Bring the database's tables up to date at start. Without it a process refuses tables that are behind, and
    `python -m catalog migrate` brings them up to date: once for a deployment, by a user who may alter tables."""

    auth: Auth = "none"
    """`keys`: every request shows an API key. `none`: there are no keys, and only direct requests from this machine are
    answered; what comes through a proxy is refused."""
    oidc_issuer: str = ""
    """With `auth: keys`, tokens of this OpenID Connect provider are accepted beside keys (needs `levity[oidc]`)."""
    oidc_audience: str = "levity"
    """What a token's `aud` must name."""
    oidc_tenant_claim: str = "tenant"
    """The claim that names the tenant, which must exist."""
    oidc_scope_claim: str = "scope"
    """The claim with the scopes, a list or a text with blanks; `levity:jobs` is `jobs`, others are ignored."""
    requests_per_minute: int = Field(default=0, ge=0)
    """Requests that a tenant may send in a minute where it has no limit of its own; 0 limits nobody."""
    max_upload_bytes: int = Field(default=16 * GIB, ge=1)
    """Largest upload, in bytes."""
    upload_part_bytes: int = Field(default=16 * MIB, ge=1)
    """Part size that is suggested to clients, in bytes."""
    upload_idle_seconds: float = Field(default=30, gt=0)
    """A body that sends nothing for so long is given up."""
    min_free_bytes: int = Field(default=256 * MIB, ge=0)
    """An upload is refused when it would leave less free disk than this, in bytes."""
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Values of the Host header that are answered; a web page cannot reach a local service by rebinding its name.
    `*` answers all."""

    max_attempts: int = Field(default=3, ge=1, le=100)
    """Tries that a job gets before a dying worker or child makes it fail."""
    heartbeat_seconds: float = Field(default=10, gt=0)
    """How often a worker renews the lease on its job."""
    lease_seconds: float = Field(default=60, gt=0)
    """A job whose lease was not renewed for so long is taken from its worker."""
    sweep_seconds: float = Field(default=10, gt=0)
    """How often each worker looks for lost wake-ups and leases that ran out."""
    poll_seconds: float = Field(default=0.5, gt=0)
    """How often a worker asks whether its running job was cancelled."""
    drain_seconds: float = Field(default=30, ge=0)
    """After SIGTERM a worker lets its jobs go on for so long, then gives them back to the queue."""
    grace_seconds: float = Field(default=5, ge=0)
    """Time between SIGTERM and SIGKILL to a job's child process."""
    job_time_limit_seconds: float = Field(default=3600, gt=0)
    """Wall time that a job may take when it names none."""
    inspection_time_limit_seconds: float = Field(default=600, gt=0)
    """Wall time for looking into an upload; a small file can keep a library busy for ever."""
    max_job_time_limit_seconds: float = Field(default=24 * 3600, gt=0)
    """Largest wall time that a job may ask for."""
    job_memory_limit_bytes: int = Field(default=0, ge=0)
    """Address space of a job's child process, in bytes; 0 means 80 % of this machine's memory."""
    held_model_bytes: int = Field(default=2 * GIB - MIB, ge=MIB)
    """A model with external data of more bytes is not read into memory as a whole, where a job's steps can do
    without."""
    warm_children: int = Field(default=1, ge=0, le=64)
    """Child processes that wait with their imports done, so that the next job starts at once."""
    sandbox: Literal["auto", "bubblewrap", "rlimits"] = "auto"
    """How a child is confined: with bubblewrap (no network, read-only file system) where it works, or by resource
    limits alone. `bubblewrap` refuses to start a worker where it does not work."""

    webhook_allow_http: bool = False
    """Webhooks may go to `http://` too; otherwise to `https://` alone."""
    webhook_allowed_networks: tuple[IPvAnyNetwork, ...] = ()
    """Networks that webhooks may go to beside public addresses, such as `["10.20.0.0/16"]`; they are checked when the
    connection is made."""
    webhook_timeout_seconds: float = Field(default=20, gt=0)
    """Time for one attempt at delivery: resolving, connecting, sending, reading the answer."""
    webhook_senders: int = Field(default=8, ge=1, le=256)
    """Deliveries that a worker of queue `io` makes at once, two at most to one host and port."""
    webhook_secret_overlap_seconds: float = Field(default=24 * 3600, ge=0)
    """After a webhook's secret was rotated, the previous one signs too for so long."""
    webhook_disable_after_seconds: float = Field(default=5 * 24 * 3600, gt=0)
    """A webhook is disabled when a delivery used up its attempts and none succeeded for so long."""
    webhook_retention_seconds: float = Field(default=30 * 24 * 3600, gt=0)
    """Deliveries are forgotten so long after they ended."""
    max_webhooks: int = Field(default=100, ge=0)
    """Webhooks that hear of all jobs: each event is sent to each."""

    upload_retention_seconds: float = Field(default=7 * DAY, ge=3600)
    """An upload is forgotten when nothing arrived for so long, or so long after it was complete; models and datasets
    made from it stay."""
    idempotency_retention_seconds: float = Field(default=7 * DAY, gt=0)
    """An Idempotency-Key is remembered for so long."""
    step_cache_retention_seconds: float = Field(default=30 * DAY, gt=0)
    """What a step left, or how far it got, is forgotten when no job used it for so long."""
    job_retention_seconds: float = Field(default=0, ge=0)
    """Jobs are deleted with their events and artifacts so long after they ended; 0 keeps them until a caller deletes
    them."""
    collect_seconds: float = Field(default=3600, ge=0)
    """How often some worker looks for what is to be forgotten, and for bytes that nothing names; 0 means never."""
    collect_grace_seconds: float = Field(default=DAY, ge=0)
    """Bytes are removed when nothing named them for so long. Must be longer than any upload, download or copy."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe messages that are logged."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """Form of a log's lines: `text` for people, `json` for machines; `auto` is text on a terminal, JSON elsewhere."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments before variables before files that variables name."""
        return init_settings, env_settings, SecretFiles(settings_cls)

    @cached_property
    def root(self) -> Path:
        """The data folder, absolute."""
        return self.data_dir.expanduser().resolve()

    @cached_property
    def resolved_database_url(self) -> str:
        """The database in force."""
        if not self.database_url:
            return f"sqlite:///{self.root / 'levity.db'}"
        return with_password(self.database_url, self.database_password.get_secret_value())

    @cached_property
    def resolved_broker_url(self) -> str:
        """The broker in force."""
        if not self.broker_url:
            return "filesystem://"
        return with_password(self.broker_url, self.broker_password.get_secret_value())

    @cached_property
    def resolved_store_url(self) -> str:
        """The blob store in force."""
        return self.store_url or f"file://{self.root / 'blobs'}"

    @property
    def resolved_log_format(self) -> Literal["json", "text"]:
        """The form of a log's lines in force."""
        if self.log_format == "auto":
            return "text" if sys.stderr.isatty() else "json"
        return self.log_format

    @cached_property
    def store_credentials(self) -> dict[str, str]:
        """Credentials of an S3-compatible store as obstore names them; empty when the `AWS_*` variables hold them."""
        key = self.store_access_key_id.get_secret_value()
        secret = self.store_secret_access_key.get_secret_value()
        return {"access_key_id": key, "secret_access_key": secret} if key else {}

    @cached_property
    def webhook_policy(self) -> Policy:
        """Where webhooks may go."""
        return Policy(allow_http=self.webhook_allow_http, allowed_networks=self.webhook_allowed_networks)

    @cached_property
    def resolved_memory_limit(self) -> int:
        """Address space of a child in bytes."""
        if self.job_memory_limit_bytes:
            return self.job_memory_limit_bytes
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 8 // 10

    def folder(self, name: str) -> Path:
        """A folder of this name in the data folder, made on first use and closed to other users."""
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path
