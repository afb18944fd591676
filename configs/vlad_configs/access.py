"""Who may connect to the daemon, how, and how often: one frozen dataclass, checked."""

from __future__ import annotations

import dataclasses
import ipaddress
import math

from vlad_configs.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class AccessConfig:
    """What a client must show, and what it may use up.

    Attributes:
        api_key: one key that clients must present; never written to a log.
        api_key_file: a file with several, a line each: a name and a key, or a key alone. Both may be given.
        require_key: refuse to start where nobody would have to present a key.
        tls_certificate, tls_key: PEM files, both or none; with them the policy port speaks TLS 1.2 and newer.
        tls_client_ca: PEM file; clients must then show a certificate that one of these authorities signed.
        allowed_origins: web pages, such as `https://lab.example`, whose scripts may open a websocket.
        max_connections: websockets that may be open at once.
        max_requests_per_s: of one client, by key where the file names several, else by address; None for any
            number.
    """

    api_key: str | None = None
    api_key_file: str | None = None
    require_key: bool = False
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    allowed_origins: tuple[str, ...] = ()
    max_connections: int = 256
    max_requests_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("the api key is empty; leave it out to admit everyone")
        if self.require_key and not self.needs_key:
            raise ConfigError(
                "--require-key is given but there is no key: add --api-key-file or VLAD_API_KEY"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key belong together; give both or none")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ConfigError("--tls-client-ca needs --tls-cert and --tls-key")
        for origin in self.allowed_origins:
            scheme, separator, host = origin.partition("://")
            if not separator or scheme not in ("http", "https") or not host or "/" in host:
                raise ConfigError(f"--allow-origin must look like https://host:port, not '{origin}'")
        if self.max_connections < 1:
            raise ConfigError(f"--max-connections must be at least 1, not {self.max_connections}")
        rate = self.max_requests_per_s
        if rate is not None and not (0 < rate < math.inf):
            raise ConfigError(f"--max-requests-per-second must be a positive number, not {rate}")

    @property
    def needs_key(self) -> bool:
        """True where clients must present a key."""
        return self.api_key is not None or self.api_key_file is not None

    @property
    def uses_tls(self) -> bool:
        """True where the policy port speaks TLS."""
        return self.tls_certificate is not None


def is_loopback(host: str) -> bool:
    """True for names and addresses that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
