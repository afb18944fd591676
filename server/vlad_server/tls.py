"""TLS of the policy port."""

from __future__ import annotations

import ssl
from typing import NoReturn

from vlad_configs.access import AccessConfig
from vlad_configs.errors import ConfigError


def server_context(config: AccessConfig) -> ssl.SSLContext | None:
    """What the policy port needs to speak TLS 1.2 and newer; None where it shall not.

    Raises:
        ConfigError: where a file cannot be used.
    """
    if not config.uses_tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, config)
    if config.tls_client_ca is not None:
        try:
            context.load_verify_locations(config.tls_client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"--tls-client-ca {config.tls_client_ca} cannot be used: {error}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def load_certificate(context: ssl.SSLContext, config: AccessConfig) -> None:
    """Read certificate and key (again); connections that are open keep theirs.

    Raises:
        ConfigError: where they cannot be read or do not belong together.
    """
    assert config.tls_certificate is not None
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--tls-cert {config.tls_certificate} and --tls-key {config.tls_key} cannot be used: {error}"
        ) from None


def _no_password() -> NoReturn:
    # The library would ask at the terminal otherwise, where a daemon waits for ever.
    raise ConfigError("--tls-key is encrypted; give one that is not, readable by the daemon's user only")
