"""The client as robots get it: its wheel, alone, in an environment of its own."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np
import pytest

from tests.support.reference_server import ReferenceServer

pytestmark = pytest.mark.slow

CLIENTS = pathlib.Path(__file__).resolve().parents[2] / "clients"

PROBE = """
import json, pkgutil, sys, warnings
warnings.simplefilter("error")
import numpy as np
import vlad_client
for module in pkgutil.iter_modules(vlad_client.__path__, "vlad_client."):
    __import__(module.name)
with vlad_client.WebsocketClientPolicy("127.0.0.1", int(sys.argv[1])) as policy:
    broker = vlad_client.ActionChunkBroker(policy, 10)
    action = broker.infer({"observation/state": np.full(8, 3.0)})["actions"]
file, version = vlad_client.__file__, vlad_client.__version__
print(json.dumps({"action": action.tolist(), "file": file, "version": version}))
"""


def _works(interpreter: str) -> bool:
    """A name on the path may be a launcher without an interpreter behind it."""
    return subprocess.run([interpreter, "--version"], capture_output=True, check=False).returncode == 0


def _run(*command: Any, **options: Any) -> str:
    process = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert process.returncode == 0, f"{command}:\n{process.stdout}\n{process.stderr}"
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=CLIENTS)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: pathlib.Path) -> None:
    assert wheel.name.startswith("vlad_client-0.1.0-py3-none-any")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"vlad_client", "vlad_client-0.1.0.dist-info"}
    assert {"vlad_client/__init__.py", "vlad_client/py.typed"} <= set(names)


@pytest.mark.parametrize("python", ["this", "python3.8", "python3.13"])
def test_installed_alone_it_brings_three_packages_and_serves_a_robot(
    python: str, wheel: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    interpreter = sys.executable if python == "this" else shutil.which(python)
    if interpreter is None or not _works(interpreter):
        pytest.skip(f"there is no {python} here")
    _run(interpreter, "-m", "venv", tmp_path / "bare")
    scripts = tmp_path / "bare" / "bin"
    _run(scripts / "python", "-m", "pip", "install", "--quiet", wheel)

    listed = json.loads(_run(scripts / "python", "-m", "pip", "list", "--format", "json"))
    installed = {package["name"].lower() for package in listed} - {"pip", "setuptools"}
    assert installed == {"vlad-client", "numpy", "msgpack", "websockets"}

    with ReferenceServer() as server:
        probe = json.loads(_run(scripts / "python", "-c", PROBE, server.port, cwd=tmp_path))
        assert probe["action"] == [3.0] * 7
        assert probe["version"] == "0.1.0"
        assert pathlib.Path(probe["file"]).is_relative_to(tmp_path)
        np.testing.assert_array_equal(server.observations[0]["observation/state"], np.full(8, 3.0))

        arguments = ["--host=127.0.0.1", f"--port={server.port}", "--num-steps=3", "--env=LIBERO"]
        table = _run(scripts / "simple_client", *arguments, cwd=tmp_path)
        assert "Timing statistics of 3 calls" in table
        assert "server_prev_total_ms" in table
