"""Parametrises golden tests over what a JSON file of the golden folder lists."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.golden import FOLDER


def listed(file_name: str, key: str | None = None) -> list[Any]:
    """One parameter per entry of a JSON list or map, `(name, entry)`.

    A folder without the file gives one parameter that is skipped with that reason.
    """
    path = FOLDER / file_name
    if not path.is_file():
        reason = f"{FOLDER} holds no {file_name}"
        return [pytest.param(("", {}), marks=pytest.mark.skip(reason=reason), id=file_name)]
    content = json.loads(path.read_text("utf-8"))
    entries = content if key is None else content[key]
    pairs = (
        entries.items() if isinstance(entries, dict) else ((str(i), entry) for i, entry in enumerate(entries))
    )
    return [pytest.param((name, entry), id=name) for name, entry in pairs]
