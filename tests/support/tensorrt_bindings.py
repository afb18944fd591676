"""Prints what the real TensorRT 11 bindings offer, as JSON. Runs in a process of its own.

    python -m tests.support.tensorrt_bindings WHEEL_FOLDER < names

The bindings name three libraries that are not to be had everywhere; stand-ins that define the few functions
they ask for are enough to import them. Nothing can be created, but everything can be looked at.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import pathlib
import re
import subprocess
import sys
from typing import Any

_FUNCTIONS = {
    "libnvinfer.so": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "libnvinfer_plugin.so": ("initLibNvInferPlugins",),
    "libnvonnxparser.so": (
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}


def make_stand_ins(folder: pathlib.Path, major: str) -> list[pathlib.Path]:
    """Compile the libraries; needs gcc."""
    libraries = []
    for library, functions in _FUNCTIONS.items():
        name = f"{library}.{major}"
        source = folder / f"{name}.c"
        source.write_text("".join(f"void {function}(void) {{}}\n" for function in functions))
        target = folder / name
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", "-o", str(target), str(source)],
            check=True,
        )
        libraries.append(target)
    return libraries


def look(module: Any, names: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """For each class, its members of these names: None where missing, else its signature or kind."""
    return {
        owner: {name: _describe(getattr(module, owner, None), name) for name in members}
        for owner, members in names.items()
    }


def _describe(owner: Any, name: str) -> Any:
    member = getattr(owner, name, None)
    if member is None:
        return None
    if isinstance(member, property):
        return {"property": True, "writable": member.fset is not None, "readable": member.fget is not None}
    text = member.__doc__ or ""
    signatures = re.findall(rf"\b{name}\(([^\n]*)\) ->", text)
    return {"signatures": [_parameters(signature) for signature in signatures if signature[:1] != "*"]}


def _parameters(signature: str) -> list[str]:
    """Names of the parameters; pybind11 writes `name: type = default`, types may hold commas in brackets."""
    depth, parts = 0, [""]
    for character in signature:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.partition(":")[0].strip() for part in parts if part.strip()]


def main() -> None:
    """Entry point of the process."""
    folder = pathlib.Path(sys.argv[1])
    (package,) = folder.glob("tensorrt_bindings")
    needed = subprocess.run(
        ["readelf", "-d", str(next(package.glob("*.so")))], check=True, capture_output=True, text=True
    ).stdout
    major = re.search(r"libnvinfer\.so\.(\d+)", needed)
    assert major is not None
    for library in make_stand_ins(folder, major[1]):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    module = importlib.import_module("tensorrt_bindings")
    print(json.dumps({"version": module.__version__, "members": look(module, json.load(sys.stdin))}))


if __name__ == "__main__":
    main()
