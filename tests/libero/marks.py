"""Marks of tests that need the simulator."""

from __future__ import annotations

import pytest

from vlad_libero.simulator.package import is_installed

needs_simulator = [
    pytest.mark.libero,
    pytest.mark.skipif(not is_installed(), reason="the LIBERO simulator is not installed (docs/libero.md)"),
    # Warnings of packages that nobody maintains any more.
    pytest.mark.filterwarnings("ignore"),
]
