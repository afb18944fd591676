"""The keys that admit clients: read from the command line and from a file, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import pathlib
from collections.abc import Mapping

from vlad_configs.access import AccessConfig
from vlad_configs.errors import ConfigError

MIN_KEY_CHARACTERS = 16
"""Of a key in a file; whoever can reach the port may guess as often as he likes."""

MAX_KEYS = 1024
LONE_KEY_NAME = "key"

_SCHEMES = ("api-key", "bearer")


class ApiKeys:
    """A set of named keys, kept as digests.

    Args:
        keys: the keys by their names; names may be logged, keys never.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._digests = [(name, _digest(key)) for name, key in keys.items()]

    def __len__(self) -> int:
        return len(self._digests)

    def name_for(self, authorization: str) -> str | None:
        """The name of the key in an `Authorization` header; None where it holds none of these keys.

        Takes the same time for every key that is wrong, and looks at all of them for one that is right.
        """
        scheme, _, key = authorization.partition(" ")
        presented = _digest(key.strip())
        found: str | None = None
        for name, digest in self._digests:
            if hmac.compare_digest(presented, digest):
                found = name
        return found if scheme.lower() in _SCHEMES else None


def load_keys(config: AccessConfig) -> ApiKeys:
    """The keys that a configuration names.

    Raises:
        ConfigError: where the file cannot be read or a line of it is no key; never shows a key.
    """
    keys = {} if config.api_key is None else {LONE_KEY_NAME: config.api_key.strip()}
    if config.api_key_file is not None:
        from_file = _read(pathlib.Path(config.api_key_file))
        if LONE_KEY_NAME in from_file and LONE_KEY_NAME in keys:
            raise ConfigError(f"api key file {config.api_key_file}: the name '{LONE_KEY_NAME}' is taken")
        keys |= from_file
    return ApiKeys(keys)


def _read(path: pathlib.Path) -> dict[str, str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"cannot read the api key file {path}: {reason}") from None
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise ConfigError(
                f"api key file {path}, line {number}: expected a name and a key, or a key alone"
            )
        name = words[0] if len(words) == 2 else f"line {number}"
        if len(words[-1]) < MIN_KEY_CHARACTERS:
            raise ConfigError(
                f"api key file {path}, line {number}: a key needs at least {MIN_KEY_CHARACTERS} characters; "
                "make one with `openssl rand -hex 32`"
            )
        if name in keys:
            raise ConfigError(f"api key file {path}, line {number}: the name '{name}' is taken")
        keys[name] = words[-1]
    if not keys:
        raise ConfigError(f"api key file {path} holds no key")
    if len(keys) > MAX_KEYS:
        raise ConfigError(f"api key file {path} holds {len(keys)} keys; at most {MAX_KEYS} are possible")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
