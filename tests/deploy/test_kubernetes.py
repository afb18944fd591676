"""The manifests are valid, and agree with the daemon and its image."""

from __future__ import annotations

import pathlib
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import yaml

from scripts.dockerfile import instructions
from tests.support.promql import ROOT, exported_names, metric_names
from vlad_configs.serving import ServeConfig
from vlad_server import cli
from vlad_server.health import HEALTH_PATHS

FOLDER = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.31.0", "1.37.0")
DEFAULTS = ServeConfig(environment="LIBERO", checkpoint="demo")


def _manifests() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((FOLDER / "vlad.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    spec: dict[str, Any] = _manifests()["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    spec: dict[str, Any] = only
    return spec


def _validate(file: pathlib.Path, version: str) -> subprocess.CompletedProcess[str]:
    tool = pathlib.Path(sys.executable).parent / "kubernetes-validate"
    if not tool.exists():
        pytest.skip("no kubernetes-validate in this environment")
    command = [tool, "--strict", "-k", version, file]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_fit_the_schema_of_kubernetes(version: str) -> None:
    result = _validate(FOLDER / "vlad.yaml", version)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (result.stdout + result.stderr).count("passed") == len(_manifests())


def test_an_unknown_key_is_noticed(tmp_path: pathlib.Path) -> None:
    bad = (FOLDER / "vlad.yaml").read_text().replace("readinessProbe:", "readynessProbe:")
    (tmp_path / "vlad.yaml").write_text(bad)
    result = _validate(tmp_path / "vlad.yaml", VERSIONS[-1])
    assert result.returncode != 0
    assert "readynessProbe" in result.stdout + result.stderr


def test_the_arguments_are_those_of_the_daemon(container: dict[str, Any]) -> None:
    (arguments,) = (item["value"] for item in container["env"] if item["name"] == "SERVER_ARGS")
    args = cli.parse(shlex.split(arguments))
    assert isinstance(args.policy, cli.Checkpoint)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(args.policy.dir.startswith(f"{path}/") for path in mounts)
    assert cli.API_KEY_VARIABLE in {item["name"] for item in container["env"]}


def test_probes_ask_a_port_that_outlives_the_drain(container: dict[str, Any]) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"policy": DEFAULTS.port, "metrics": DEFAULTS.metrics_port}
    for kind, path in (("startup", "/readyz"), ("readiness", "/readyz"), ("liveness", "/livez")):
        probe = container[f"{kind}Probe"]["httpGet"]
        assert probe == {"path": path, "port": "metrics"}
        assert path in HEALTH_PATHS


def test_requests_in_flight_are_answered_before_the_kill(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + DEFAULTS.drain_s


def test_a_pod_gets_a_gpu_and_no_privilege(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    (user, _) = (item.text for item in instructions(ROOT / "Dockerfile") if item.keyword == "USER")
    assert pod["securityContext"]["runAsUser"] == int(user)


def test_what_the_image_writes_to_is_a_volume(pod: dict[str, Any], container: dict[str, Any]) -> None:
    text = (ROOT / "Dockerfile").read_text()
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(re.findall(r"VLAD_CACHE_DIR=(\S+)", text)) <= mounts.keys()
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}


def test_the_autoscaler_reads_a_metric_that_the_adapter_makes_of_ours() -> None:
    (metric,) = _manifests()["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    assert metric_names(rule["seriesQuery"]) <= exported_names()
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", "").replace("<<.GroupBy>>", "pod")
    assert metric_names(query) <= exported_names()


def test_a_robot_that_comes_back_finds_its_pod() -> None:
    service = _manifests()["Service"]["spec"]
    assert service["sessionAffinity"] == "ClientIP"
    assert service["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] > DEFAULTS.session_ttl_s
