"""Contradictions in who may connect are refused before anything listens."""

from __future__ import annotations

from typing import Any

import pytest

from vlad_configs.access import AccessConfig, is_loopback
from vlad_configs.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"api_key": "  "}, "api key is empty"),
        ({"require_key": True}, "--require-key is given but there is no key"),
        ({"tls_certificate": "cert.pem"}, "belong together"),
        ({"tls_key": "key.pem"}, "belong together"),
        ({"tls_client_ca": "ca.pem"}, "--tls-client-ca needs --tls-cert"),
        ({"allowed_origins": ("lab.example",)}, "must look like https://host:port"),
        ({"allowed_origins": ("https://lab.example/page",)}, "must look like"),
        ({"allowed_origins": ("*",)}, "must look like"),
        ({"max_connections": 0}, "--max-connections must be at least 1"),
        ({"max_requests_per_s": 0.0}, "must be a positive number"),
        ({"max_requests_per_s": float("nan")}, "must be a positive number"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AccessConfig(**options)


@pytest.mark.parametrize(
    "options", [{"api_key": "k", "require_key": True}, {"api_key_file": "f", "require_key": True}]
)
def test_a_key_from_anywhere_is_a_key(options: dict[str, Any]) -> None:
    assert AccessConfig(**options).needs_key


def test_loopback_is_told_from_the_rest() -> None:
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]")] == [
        True
    ] * 5
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.4", "localhost.example", "")] == [
        False
    ] * 5
