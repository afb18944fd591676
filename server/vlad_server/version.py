"""Which version of the daemon this is."""

from __future__ import annotations

import importlib.metadata


def daemon_version() -> str:
    """As installed; `not installed` where it runs from a source tree alone."""
    try:
        return importlib.metadata.version("vlad")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
