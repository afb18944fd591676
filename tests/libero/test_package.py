"""What is missing to draw pictures is told in words that help."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from vlad_libero.errors import SimulatorMissingError
from vlad_libero.simulator import package


def no_library(name: str, *_: Any, **__: Any) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


def test_a_machine_without_egl_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    with pytest.raises(SimulatorMissingError, match=r"libEGL\.so\.1.*apt install libegl1"):
        package._require_egl()


def test_other_ways_of_drawing_need_no_egl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    package._require_egl()
