"""The engine worker as on a robot's computer, which has neither torch nor onnx, over stand-ins for TensorRT
and the GPU. Whatever of ours asks for a package that such a computer lacks is told that it is not there. The
version of TensorRT is that of STAND_IN_TENSORRT, or 8.6.0."""

from __future__ import annotations

import builtins
import os
import sys
from typing import Any

ABSENT = {"torch", "triton"}
ABSENT_FOR_US = {"onnx", "onnxruntime"}
"""The stand-ins themselves run on these."""


class Guard:
    """Finds no package that is absent."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


_plain_import = builtins.__import__


def guarded_import(name: str, globals: Any = None, *rest: Any, **more: Any) -> Any:
    """`__import__` that hides onnx from our packages."""
    importer = (globals or {}).get("__name__", "")
    if importer.startswith("vlad_") and name.partition(".")[0] in ABSENT_FOR_US:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    return _plain_import(name, globals, *rest, **more)


def main() -> None:
    """Serve as the real worker does."""
    sys.meta_path.insert(0, Guard())  # type: ignore[arg-type]
    builtins.__import__ = guarded_import
    from tests.support.host_tensorrt import HostDevice, make_tensorrt
    from vlad_engines import worker
    from vlad_engines.backends.tensorrt import backend

    device = HostDevice(compute_capability="8.9")
    version = os.environ.get("STAND_IN_TENSORRT", "8.6.0")
    sys.modules["tensorrt"] = make_tensorrt(version, device)
    backend.open_device = lambda name: device  # type: ignore[assignment,return-value]
    worker.main()


if __name__ == "__main__":
    main()
