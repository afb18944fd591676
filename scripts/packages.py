"""Builds the two distributions, and checks them the way a stranger's machine would.

    packages.py build DIR    sdists and wheels of vlad and vlad-client; wheels are made from the sdists
    packages.py check        the same in a scratch folder, then bare environments that install the wheels

`check` shows that the server needs no torch, that the wheel holds its packages and nothing
else, and that the client brings numpy, msgpack and websockets only.
"""

from __future__ import annotations

import email
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import venv
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]

SERVER_PACKAGES = {"vlad_server", "vlad_engines", "vlad_configs", "vlad_libero", "vlad_training"}
CLIENT_REQUIREMENTS = {"numpy", "msgpack", "websockets"}

_IMPORT_ALL = """
import importlib, importlib.util, pkgutil
assert importlib.util.find_spec("torch") is None
for name in ("vlad_server", "vlad_configs", "vlad_engines.processing", "vlad_libero"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            # What an extra brings; whoever needs such a module says so to its users.
            assert error.name in ("mcap", "pyarrow"), (module.name, error.name)
"""


def build(out: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Build both distributions into `out`; returns the wheels of vlad and vlad-client."""
    return _build(ROOT, out, "vlad"), _build(ROOT / "clients", out, "vlad_client")


def _build(source: pathlib.Path, out: pathlib.Path, name: str) -> pathlib.Path:
    out.mkdir(parents=True, exist_ok=True)
    _run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(out), cwd=source)
    (sdist,) = out.glob(f"{name}-*.tar.gz")
    _pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(sdist))
    (wheel,) = out.glob(f"{name}-*.whl")
    print(f"packages: {sdist.name} -> {wheel.name} ({wheel.stat().st_size / 1e3:.0f} kB)", flush=True)
    return wheel


def check(scratch: pathlib.Path) -> None:
    """Build, install apart, and try what each wheel promises.

    Raises:
        SystemExit: with what went wrong.
    """
    server, client = build(scratch / "dist")
    _check_contents(server, SERVER_PACKAGES)
    _check_contents(client, {"vlad_client"})
    _check_server(server, scratch / "server")
    _check_client(client, scratch / "client")


def _check_contents(wheel: pathlib.Path, packages: set[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    found = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    _require(found == packages, f"{wheel.name} holds {sorted(found)}, expected {sorted(packages)}")
    for package in packages:
        _require(f"{package}/py.typed" in names, f"{wheel.name} lacks {package}/py.typed")
    licensed = any(re.search(r"\.dist-info/(licenses/)?LICENSE", name) for name in names)
    _require(licensed, f"{wheel.name} carries no licence")


def _check_server(wheel: pathlib.Path, environment: pathlib.Path) -> None:
    python = _environment(environment)
    _pip(python, "install", "--quiet", "--no-deps", str(wheel))
    _pip(python, "install", "--quiet", *_requirements_without_torch(wheel))
    _run(python, "-c", _IMPORT_ALL, cwd=environment)
    serve_policy = environment / "bin" / "serve_policy"
    usage = _run(str(serve_policy), "--help", cwd=environment)
    _require("--backend" in usage, "serve_policy --help does not name --backend")
    refused = subprocess.run(
        [serve_policy, "--checkpoint", "demo", "--port", "0", "--metrics-port", "0"],
        cwd=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last = (refused.stderr.splitlines() or [""])[-1]
    _require(
        refused.returncode == 2 and last.startswith("serve_policy: ") and "torch" in last,
        f"without torch serve_policy ended with {refused.returncode}: {refused.stderr[-2000:]}",
    )
    print("packages: vlad imports, parses and refuses in one line without torch", flush=True)


def _requirements_without_torch(wheel: pathlib.Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(path))
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    return [line for line in needed if not re.match(r"torch\b", line)]


def _check_client(wheel: pathlib.Path, environment: pathlib.Path) -> None:
    python = _environment(environment)
    before = _installed(python)
    _pip(python, "install", "--quiet", str(wheel))
    arrived = _installed(python) - before - {"vlad-client"}
    _require(arrived == CLIENT_REQUIREMENTS, f"vlad-client brought {sorted(arrived)}")
    _run(python, "-W", "error", "-c", "import vlad_client", cwd=environment)
    usage = _run(str(environment / "bin" / "simple_client"), "--help", cwd=environment)
    _require("--num-steps" in usage, "simple_client --help does not name --num-steps")
    print(f"packages: vlad-client alone brings {', '.join(sorted(arrived))}", flush=True)


def _installed(python: str) -> set[str]:
    return {item["name"].lower() for item in json.loads(_pip(python, "list", "--format", "json"))}


def _environment(path: pathlib.Path) -> str:
    venv.create(path, with_pip=True)
    return str(path / "bin" / "python")


def _pip(python: str, *arguments: str) -> str:
    return _run(python, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=ROOT)


def _run(*command: str, cwd: pathlib.Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    _require(result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stdout


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        sys.exit(f"packages: {otherwise}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["build"] and len(sys.argv) == 3:
        build(pathlib.Path(sys.argv[2]).resolve())
    elif sys.argv[1:] == ["check"]:
        with tempfile.TemporaryDirectory() as folder:
            check(pathlib.Path(folder))
    else:
        sys.exit(__doc__)
