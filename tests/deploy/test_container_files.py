"""Dockerfile, compose.yml, bake file and shell scripts, by the judgement of those who wrote the rules."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import yaml

from scripts.dockerfile import instructions
from tests.support.promql import ROOT

SCRIPTS = [
    *sorted((ROOT / "deploy").rglob("*.sh")),
    *sorted((ROOT / "scripts").glob("*.sh")),
    ROOT / ".ci" / "run",
]


def _tool(name: str) -> str:
    """A tool of this environment, or of the machine."""
    beside = pathlib.Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} for this machine")
    return found


def _run(*command: str | pathlib.Path) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_hadolint_has_nothing_to_say() -> None:
    _run(_tool("hadolint"), "--config", ".hadolint.yaml", "Dockerfile")


def test_hadolint_would_say_something(tmp_path: pathlib.Path) -> None:
    bad = (ROOT / "Dockerfile").read_text().replace("USER 10001", "USER vlad")
    (tmp_path / "Dockerfile").write_text(bad)
    with pytest.raises(AssertionError, match="DL3066"):
        _run(_tool("hadolint"), "--config", ".hadolint.yaml", tmp_path / "Dockerfile")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_has_nothing_to_say(script: pathlib.Path) -> None:
    _run(_tool("shellcheck"), script)


def _compose_schema(file: pathlib.Path) -> None:
    _run(_tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", file)


def test_compose_file_is_one() -> None:
    _compose_schema(ROOT / "compose.yml")


def test_a_key_that_compose_does_not_know_is_noticed(tmp_path: pathlib.Path) -> None:
    bad = (ROOT / "compose.yml").read_text().replace("read_only: true", "readonly: true", 1)
    (tmp_path / "compose.yml").write_text(bad)
    with pytest.raises(AssertionError, match="readonly"):
        _compose_schema(tmp_path / "compose.yml")


def _bake() -> dict[str, Any]:
    bake: dict[str, Any] = json.loads((ROOT / "docker-bake.json").read_text())
    return bake


def test_bake_targets_set_arguments_that_the_dockerfile_has() -> None:
    items = instructions(ROOT / "Dockerfile")
    arguments = {item.text.split("=")[0] for item in items if item.keyword == "ARG"}
    stages = {item.stage for item in items}
    targets = _bake()["target"]
    for name, target in targets.items():
        assert set(target.get("args", {})) <= arguments, name
        base = targets[target["inherits"][0]] if "inherits" in target else target
        assert base["target"] in stages, name
    for image in [value for target in targets.values() for key, value in target.get("args", {}).items()]:
        assert ":latest" not in image


def test_extras_of_the_images_exist() -> None:
    extras = set(re.findall(r"^([\w-]+) = \[$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    bake = [target["args"]["EXTRAS"] for target in _bake()["target"].values() if "args" in target]
    (default,) = (
        item.text.split("=")[1].strip('"')
        for item in instructions(ROOT / "Dockerfile")
        if item.keyword == "ARG" and item.text.startswith("EXTRAS=")
    )
    assert {extra for several in (*bake, default) for extra in several.split(",")} <= extras


def test_containers_are_not_root_write_to_volumes_only_and_cannot_rise() -> None:
    services = yaml.safe_load((ROOT / "compose.yml").read_text())["services"]
    for name in ("openpi_server", "runtime", "prometheus"):
        service = services[name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    users = [item.text for item in instructions(ROOT / "Dockerfile") if item.keyword == "USER"]
    # A number, so that Kubernetes can tell that it is not root.
    assert users == ["10001", "10001"]


def test_whatever_the_image_writes_lies_in_a_volume() -> None:
    items = [item for item in instructions(ROOT / "Dockerfile") if item.stage == "server"]
    (volumes,) = (json.loads(item.text) for item in items if item.keyword == "VOLUME")
    (environment,) = (item.text for item in items if item.keyword == "ENV")
    caches = dict(re.findall(r"(\w+CACHE\w*)=(\S+)", environment))
    assert caches
    assert all(any(path.startswith(volume) for volume in volumes) for path in caches.values())
    mounts = yaml.safe_load((ROOT / "compose.yml").read_text())["services"]["openpi_server"]["volumes"]
    mounted = {mount.rsplit(":", 1)[-1] for mount in mounts if not mount.endswith(":ro")}
    assert mounted == set(volumes)
    # Created with the right owner: a new volume takes what the image has at its place.
    (made,) = (item.text for item in items if item.keyword == "RUN")
    assert all(volume in made for volume in volumes)


def test_everybody_waits_for_health() -> None:
    services = yaml.safe_load((ROOT / "compose.yml").read_text())["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, name
            assert "healthcheck" in services[other], other
