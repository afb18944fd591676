"""Every name and signature of TensorRT that our code uses, against the bindings of the newest version.

mypy keeps the code within the types of `bindings`; this test keeps those types within TensorRT.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import zipfile
from typing import Any

import pytest

from vlad_engines.backends.tensorrt import api, bindings

WHEEL = "tensorrt-cu13-bindings>=11,<12"

CLASSES = {
    "Builder": "Builder",
    "BuilderConfig": "IBuilderConfig",
    "Engine": "ICudaEngine",
    "EngineInspector": "EngineInspector",
    "ExecutionContext": "IExecutionContext",
    "HostMemory": "IHostMemory",
    "ModernBuilderConfig": "IBuilderConfig",
    "ModernEngine": "ICudaEngine",
    "ModernExecutionContext": "IExecutionContext",
    "Network": "INetworkDefinition",
    "OnnxParser": "OnnxParser",
    "OptimizationProfile": "IOptimizationProfile",
    "ParserError": "ParserError",
    "Runtime": "Runtime",
    "Tensor": "ITensor",
    "TimingCache": "ITimingCache",
}
LEGACY = {"LegacyEngine", "LegacyExecutionContext"}
OTHER = {"Dims"}


def own_members(protocol: type) -> dict[str, Any]:
    """Methods and properties by name, and annotated attributes as None."""
    members: dict[str, Any] = dict.fromkeys(inspect.get_annotations(protocol))
    return members | {
        name: value
        for name, value in vars(protocol).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    }


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    for tool in ("gcc", "readelf"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}, to make stand-ins for TensorRT's libraries")
    folder = tmp_path_factory.mktemp("bindings")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    result = subprocess.run(download, capture_output=True, text=True, check=False, timeout=120)
    if result.returncode:
        pytest.skip(f"the wheel of TensorRT's bindings cannot be had: {result.stderr.strip()[-300:]}")
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    names: dict[str, list[str]] = {}
    for protocol, owner in CLASSES.items():
        names.setdefault(owner, []).extend(own_members(getattr(bindings, protocol)))
    for table in (api.ENUM_MEMBERS, api.MODERN_ENUM_MEMBERS, api.LEGACY_ENUM_MEMBERS):
        for owner, members in table.items():
            names.setdefault(owner, []).extend(members)
    names["IProgressMonitor"] = ["phase_start", "step_complete", "phase_finish"]
    names["ILogger"] = ["log", "Severity"]
    names["Severity"] = []
    inspected = subprocess.run(
        [sys.executable, "-m", "tests.support.tensorrt_bindings", str(folder)],
        input=json.dumps(names),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert inspected.returncode == 0, inspected.stderr
    found: dict[str, Any] = json.loads(inspected.stdout)
    assert api.TensorRt(_module(found["version"])).strongly_typed
    members: dict[str, Any] = found["members"]
    return members


def _module(version: str) -> Any:
    return type("module", (), {"__version__": version})


def test_every_type_is_compared_or_said_to_be_old() -> None:
    protocols = {
        name
        for name, value in vars(bindings).items()
        if inspect.isclass(value) and value.__module__ == bindings.__name__
    }
    assert protocols == CLASSES.keys() | LEGACY | OTHER


@pytest.mark.parametrize("protocol", CLASSES)
def test_methods_take_what_we_give_them(real: dict[str, Any], protocol: str) -> None:
    for name, member in own_members(getattr(bindings, protocol)).items():
        found = real[CLASSES[protocol]][name]
        assert found is not None, f"{CLASSES[protocol]}.{name} is gone"
        if member is None or isinstance(member, property):
            assert found.get("property"), f"{CLASSES[protocol]}.{name} is no property"
            continue
        mine = list(inspect.signature(member).parameters)
        assert mine[0] == "self"
        fitting = [signature for signature in found["signatures"] if signature[: len(mine)] == mine]
        assert fitting, f"{CLASSES[protocol]}.{name} takes {found['signatures']}, we give {mine}"


@pytest.mark.parametrize("attribute", ["progress_monitor", "builder_optimization_level", "max_aux_streams"])
def test_what_we_set_can_be_set(real: dict[str, Any], attribute: str) -> None:
    assert real["IBuilderConfig"][attribute]["writable"]


@pytest.mark.parametrize("table", [api.ENUM_MEMBERS, api.MODERN_ENUM_MEMBERS], ids=["all", "modern"])
def test_members_of_enumerations_are_there(real: dict[str, Any], table: dict[str, tuple[str, ...]]) -> None:
    for owner, members in table.items():
        for name in members:
            assert real[owner][name] is not None, f"{owner}.{name} is gone"


def test_what_we_call_old_is_gone(real: dict[str, Any]) -> None:
    """Otherwise the two ways could become one."""
    for owner, members in api.LEGACY_ENUM_MEMBERS.items():
        for name in members:
            assert real[owner][name] is None, f"{owner}.{name} is still there"


def test_a_progress_monitor_is_called_as_ours_expects(real: dict[str, Any]) -> None:
    assert real["IProgressMonitor"]["phase_start"]["signatures"] == [
        ["self", "phase_name", "parent_phase", "num_steps"]
    ]
    assert real["IProgressMonitor"]["step_complete"]["signatures"] == [["self", "phase_name", "step"]]
    assert real["IProgressMonitor"]["phase_finish"]["signatures"] == [["self", "phase_name"]]
    assert real["ILogger"]["Severity"] is not None
    assert real["ILogger"]["log"]["signatures"] == [["self", "severity", "msg"]]
