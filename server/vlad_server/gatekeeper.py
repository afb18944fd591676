"""Who may connect: keys, pages, and how many at once. Decides, and never sends anything itself."""

from __future__ import annotations

import logging
import ssl
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers

from vlad_configs.access import AccessConfig, is_loopback
from vlad_configs.errors import ConfigError
from vlad_server import api_keys, tls
from vlad_server.metrics import ServerMetrics
from vlad_server.rate_limit import Allowance, Allowances

logger = logging.getLogger("vlad.server")

Refusal = tuple[HTTPStatus, str]


class Gatekeeper:
    """Guards the policy port.

    Args:
        listens_on: the address on which the port is bound.

    Raises:
        ConfigError: where a file of keys or certificates cannot be used.
    """

    def __init__(self, config: AccessConfig, *, listens_on: str, metrics: ServerMetrics) -> None:
        self._config = config
        self._is_local = is_loopback(listens_on)
        self._metrics = metrics
        self._keys = api_keys.load_keys(config)
        self._allowances = Allowances(config.max_requests_per_s)
        self._admitted: set[ServerConnection] = set()
        self.tls: ssl.SSLContext | None = tls.server_context(config)

    def reload(self) -> None:
        """Read keys and certificates again; what cannot be used is logged, and the old ones stay."""
        try:
            keys = api_keys.load_keys(self._config)
            if self.tls is not None:
                tls.load_certificate(self.tls, self._config)
        except ConfigError as error:
            logger.error("nothing is reloaded: %s", error)
            return
        self._keys = keys
        logger.info("reloaded %d api keys%s", len(keys), " and the certificate" if self.tls else "")

    def refuse_robot(self, connection: ServerConnection, headers: Headers) -> Refusal | None:
        """Why a websocket may not be opened; None where it may, and then it counts as open."""
        outcome, refusal = self._judge(headers)
        self._metrics.connection_attempts[outcome].inc()
        if refusal is None:
            self._admitted.add(connection)
        return refusal

    def refuse_reader(self, headers: Headers) -> Refusal | None:
        """Why what the status page shows may not be read; None where it may."""
        if not self._key_fits(headers):
            return HTTPStatus.UNAUTHORIZED, "send the header 'Authorization: Api-Key <key>'\n"
        # Without a key, a name that leads to this machine would let any page in its browser read along.
        host = _host_of(headers)
        if not self._config.needs_key and self._is_local and not is_loopback(host):
            return (
                HTTPStatus.FORBIDDEN,
                "this daemon answers to localhost only; give it a key (--api-key-file)\n",
            )
        return None

    def allowance_of(self, connection: ServerConnection, now: float) -> Allowance | None:
        """How often the client of a connection may ask; None for any number.

        Args:
            now: of the clock that `Allowance.take` will be given.
        """
        request = connection.request
        name = self._keys.name_for(_authorization(request.headers)) if request is not None else None
        address: Any = connection.remote_address
        if name is None or self._config.api_key_file is None:
            name = f"address {address[0]}" if isinstance(address, tuple) else "address"
        return self._allowances.of(name, now)

    def _judge(self, headers: Headers) -> tuple[str, Refusal | None]:
        origins = headers.get_all("Origin")
        if any(origin not in self._config.allowed_origins for origin in origins):
            text = "web pages may not connect; --allow-origin names those that may\n"
            return "forbidden_origin", (HTTPStatus.FORBIDDEN, text)
        if not self._key_fits(headers):
            text = "send the header 'Authorization: Api-Key <key>'\n"
            return "unauthorized", (HTTPStatus.UNAUTHORIZED, text)
        self._admitted = {one for one in self._admitted if not one.transport.is_closing()}
        if len(self._admitted) >= self._config.max_connections:
            text = f"{self._config.max_connections} connections are open; --max-connections allows no more\n"
            return "at_capacity", (HTTPStatus.SERVICE_UNAVAILABLE, text)
        return "accepted", None

    def _key_fits(self, headers: Headers) -> bool:
        return not self._config.needs_key or self._keys.name_for(_authorization(headers)) is not None


def _authorization(headers: Headers) -> str:
    return "".join(headers.get_all("Authorization"))


def _host_of(headers: Headers) -> str:
    """The name in the Host header without its port."""
    host = "".join(headers.get_all("Host"))
    if host.startswith("["):
        return host.partition("]")[0].lstrip("[")
    return host.partition(":")[0]
