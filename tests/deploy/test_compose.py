"""compose.yml and Dockerfile agree with the daemon, with each other and with openpi's conventions."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import yaml

from scripts.dockerfile import context_copies, exec_form, instructions
from tests.support.promql import ROOT
from vlad_configs.serving import ServeConfig

DOCKERFILE = ROOT / "Dockerfile"
DEFAULTS = ServeConfig(environment="LIBERO", checkpoint="demo")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "compose.yml").read_text())
    declared = set(compose["volumes"])
    for service in compose["services"].values():
        named = {volume.split(":")[0] for volume in service.get("volumes", []) if volume[0].isalpha()}
        assert named <= declared
    services: dict[str, Any] = compose["services"]
    return services


def _seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+)(s|m)", duration)
    assert match is not None, duration
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


def _variable(text: str) -> str:
    match = re.match(r"\$\{(\w+)", text)
    assert match is not None, text
    return match[1]


def test_requests_in_flight_are_answered_before_docker_kills(services: dict[str, Any]) -> None:
    assert _seconds(services["openpi_server"]["stop_grace_period"]) > DEFAULTS.drain_s


def test_the_server_is_a_drop_in_for_openpi(services: dict[str, Any]) -> None:
    server = services["openpi_server"]
    assert server["network_mode"] == "host"
    assert _variable(server["environment"]["SERVER_ARGS"]) == "SERVER_ARGS"
    assert server["environment"]["OPENPI_DATA_HOME"] == "/openpi_assets"
    assert "${OPENPI_DATA_HOME:-~/.cache/openpi}:/openpi_assets:ro" in server["volumes"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert server["init"] is True


def test_the_client_waits_for_a_ready_policy(services: dict[str, Any]) -> None:
    client = services["runtime"]
    assert client["depends_on"] == {"openpi_server": {"condition": "service_healthy"}}
    assert client["profiles"] == ["client"]
    assert _variable(client["environment"]["CLIENT_ARGS"]) == "CLIENT_ARGS"
    assert "VLAD_API_KEY" in client["environment"], "a server with a key would refuse it"


def test_compose_and_dockerfile_probe_alike(services: dict[str, Any]) -> None:
    healthcheck = services["openpi_server"]["healthcheck"]
    assert healthcheck["test"] == ["CMD", *exec_form(DOCKERFILE, "server", "HEALTHCHECK")]
    (probe,) = (item.text for item in instructions(DOCKERFILE) if item.keyword == "HEALTHCHECK")
    for name in ("interval", "timeout", "start_period", "retries"):
        assert f"--{name.replace('_', '-')}={healthcheck[name]}" in probe


def test_defaults_of_the_base_image_agree(services: dict[str, Any]) -> None:
    arguments = dict(item.text.split("=", 1) for item in instructions(DOCKERFILE) if item.keyword == "ARG")
    given = services["openpi_server"]["build"]["args"]
    for name in ("BUILD_IMAGE", "BASE_IMAGE"):
        assert given[name] == "${" + name + ":-" + arguments[name] + "}"
    assert given["EXTRAS"] == "${EXTRAS-" + arguments["EXTRAS"].strip('"') + "}"


def test_build_targets_exist(services: dict[str, Any]) -> None:
    stages = {item.stage for item in instructions(DOCKERFILE)}
    assert {service["build"]["target"] for service in services.values() if "build" in service} <= stages


def test_the_image_exposes_the_daemons_default_ports() -> None:
    (exposed,) = (item.text for item in instructions(DOCKERFILE) if item.keyword == "EXPOSE")
    assert exposed.split() == [str(DEFAULTS.port), str(DEFAULTS.metrics_port)]


@pytest.mark.parametrize("stage", ["server", "client"])
def test_nothing_in_the_image_runs_as_root(stage: str) -> None:
    keywords = [item.keyword for item in instructions(DOCKERFILE) if item.stage == stage]
    assert "USER" in keywords
    assert "RUN" not in keywords[keywords.index("USER") :]


def test_every_image_is_pinned(services: dict[str, Any]) -> None:
    pulled = [service["image"] for service in services.values() if "build" not in service]
    bases = [item.text.split("=")[1] for item in instructions(DOCKERFILE) if "_IMAGE=" in item.text]
    for image in [*pulled, *bases]:
        tag = image.partition(":")[2]
        assert tag, image
        assert tag != "latest", image


def test_what_the_dockerfile_copies_exists_and_passes_the_dockerignore() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    admitted = {rule[1:] for rule in rules if rule.startswith("!")}
    copies = [*context_copies(DOCKERFILE, "build"), *context_copies(DOCKERFILE, "client")]
    sources = set(itertools.chain.from_iterable(names for names, _ in copies))
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == name or source.startswith(f"{name}/") for name in admitted), source
    assert {name for name in admitted if not any(source.startswith(name) for source in sources)} == set()


def test_monitoring_listens_on_this_machine_only(services: dict[str, Any]) -> None:
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    datasource = yaml.safe_load(
        (ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )
    assert datasource["datasources"][0]["url"] == "http://127.0.0.1:9090"


def test_mounted_folders_exist(services: dict[str, Any]) -> None:
    for name in ("prometheus", "grafana"):
        for volume in services[name]["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).is_dir(), source
