"""The walls between the rooms: who imports whom, and what the server must never load."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

FOLDERS = {
    "vlad_server": "server",
    "vlad_engines": "engines",
    "vlad_configs": "configs",
    "vlad_client": "clients",
    "vlad_training": "training",
}

ALLOWED = {
    "vlad_server": {"vlad_server", "vlad_configs", "vlad_engines.worker_protocol"},
    "vlad_engines": {"vlad_engines", "vlad_configs", "vlad_server.recordings"},
    "vlad_configs": {"vlad_configs"},
    "vlad_client": {"vlad_client"},
    "vlad_training": {"vlad_training", "vlad_engines", "vlad_configs"},
}


def _imports(file: pathlib.Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.partition(".")[0] in FOLDERS}


@pytest.mark.parametrize("package", FOLDERS)
def test_rooms_import_only_what_the_design_allows(package: str) -> None:
    files = list((ROOT / FOLDERS[package] / package).rglob("*.py"))
    assert files
    for file in files:
        for name in _imports(file):
            allowed = any(name == wall or name.startswith(f"{wall}.") for wall in ALLOWED[package])
            assert allowed, f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(
    "module",
    ["vlad_server.cli", "vlad_server.app", "vlad_engines.processing.processor", "vlad_configs.contract"],
)
def test_torch_free_modules_load_no_torch(module: str) -> None:
    heavy = {"torch", "tensorrt", "safetensors"}
    program = f"import sys, {module}; sys.exit(' '.join({heavy!r} & set(sys.modules)) or 0)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
