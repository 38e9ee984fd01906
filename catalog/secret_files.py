"""Settings that lie in files, as container engines hand over secrets.

`LEVITY_X_FILE=/run/secrets/x` says what `LEVITY_X=…` says, with the value in a file: it then shows neither in the
environment, which children inherit and debuggers print, nor in the description of a container.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic_settings import BaseSettings, EnvSettingsSource
from pydantic_settings.exceptions import SettingsError

_SUFFIX = "_FILE"
_LARGEST = 64 * 1024


class SecretFiles(EnvSettingsSource):
    """Reads each setting `x` from the file that the variable `PREFIX_X_FILE` names.

    Raises:
        SettingsError: A file cannot be read, or a setting is given both ways.
    """

    def __init__(self, settings_class: type[BaseSettings]) -> None:
        prefix = str(settings_class.model_config.get("env_prefix", "")).upper()
        self._contents = _read(os.environ, {f"{prefix}{name.upper()}" for name in settings_class.model_fields})
        super().__init__(settings_class)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): content for name, content in self._contents.items()}


def _read(environment: Mapping[str, str], names: set[str]) -> dict[str, str]:
    given = {name.upper(): value for name, value in environment.items()}
    contents: dict[str, str] = {}
    for name in sorted(names):
        path = given.get(name + _SUFFIX, "")
        if not path:
            continue
        if name in given:
            raise SettingsError(f"{name} and {name}{_SUFFIX} are both set; keep one of them.")
        try:
            with Path(path).open("rb") as file:
                content = file.read(_LARGEST + 1)
        except OSError as error:
            raise SettingsError(f"{name}{_SUFFIX}: {path} cannot be read: {error.strerror}.") from error
        if len(content) > _LARGEST:
            raise SettingsError(f"{name}{_SUFFIX}: {path} holds more than {_LARGEST} bytes.")
        try:
            # Editors and `echo` end a file with a line break that is no part of the secret.
            contents[name] = content.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise SettingsError(f"{name}{_SUFFIX}: {path} is not UTF-8 text.") from error
    return contents


def with_password(url: str, password: str) -> str:
    """A URL whose user has this password; the URL as it is when there is none to add.

    >>> with_password("postgresql+psycopg://levity@db:5432/levity", "p@ss")
    'postgresql+psycopg://levity:p%40ss@db:5432/levity'
    >>> with_password("redis://cache:6379/0", "secret")
    'redis://:secret@cache:6379/0'
    """
    if not password:
        return url
    parts = urlsplit(url)
    credentials, _, place = parts.netloc.rpartition("@")
    user = credentials.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{place}"))
