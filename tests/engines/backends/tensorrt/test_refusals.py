"""What cannot work is refused before any work, with words that help."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import pytest

from tests.support.host_tensorrt import HostDevice, make_tensorrt
from tests.support.tiny_networks import tiny_config
from vlad_configs.errors import ConfigError, EngineError
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.registry import create_backend
from vlad_engines.backends.tensorrt.api import TensorRt
from vlad_engines.backends.tensorrt.arithmetic import ComponentArithmetic, parse_arithmetic
from vlad_engines.export.spec import GraphForm

CONFIG = tiny_config("pi05")


class Untouchable(dict[str, Any]):
    """Weights that must not be looked at yet."""

    def __getitem__(self, name: str) -> Any:
        raise AssertionError("weights were read before the refusal")

    def __iter__(self) -> Any:
        raise AssertionError("weights were listed before the refusal")


def create(precision: Any = "fp32", device: str = "cuda", **options: Any) -> None:
    create_backend("tensorrt", CONFIG, Untouchable(), BackendOptions(2, precision, device, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu"}, "backend 'tensorrt' needs an NVIDIA GPU, not device 'cpu'"),
        ({"enable_kv_cache": False}, "leave the cache on"),
        ({"camera_counts": (0, 1)}, r"camera counts must lie in 1\.\.3, not \(0, 1\)"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create(**options)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_no_tensorrt() -> None:
    with pytest.raises(ConfigError, match=r"TensorRT cannot be loaded .*install the 'tensorrt' extra"):
        create()


def install(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", make_tensorrt(version, HostDevice()))


def test_a_precision_that_this_version_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "8.6.0")
    with pytest.raises(ConfigError, match=r"TensorRT 8\.6\.0 has no bf16.*--precision fp32.*10\.1 or newer"):
        create("bf16")


def test_an_arithmetic_that_this_version_would_not_keep_to() -> None:
    old = TensorRt(make_tensorrt("8.6.0", HostDevice()))
    with pytest.raises(ConfigError, match=r"TensorRT 8\.6\.0 is not held to fp16, which vision shall use"):
        old.check_arithmetic(parse_arithmetic("vision=fp16,prefix=fp32,denoise=fp32"))


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is not None, reason="pycuda is installed")
def test_no_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.13.3")
    with pytest.raises(ConfigError, match=r"CUDA cannot be loaded .*install the 'tensorrt' extra"):
        create("bf16")


def pycuda_driver(count: int, broken: bool) -> types.ModuleType:
    """As much of pycuda as looking for devices needs."""
    driver: Any = types.ModuleType("pycuda.driver")
    driver.Error = type("Error", (Exception,), {})

    def init() -> None:
        if broken:
            raise driver.Error("cuInit failed: no CUDA-capable device is detected")

    driver.init = init
    driver.Device = type("Device", (), {"count": staticmethod(lambda: count)})
    module: types.ModuleType = driver
    return module


@pytest.mark.parametrize(
    ("count", "broken", "message"),
    [
        (0, True, "device 'cuda:1' is not there: cuInit failed"),
        (1, False, "device 'cuda:1' is not there: CUDA sees 1 devices"),
    ],
)
def test_no_such_device(monkeypatch: pytest.MonkeyPatch, count: int, broken: bool, message: str) -> None:
    install(monkeypatch, "8.6.0")
    monkeypatch.setitem(sys.modules, "pycuda", types.ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda_driver(count, broken))
    with pytest.raises(ConfigError, match=message):
        create(device="cuda:1")


@pytest.mark.parametrize("version", ["8.5.3", "7.2", "9.0.1", "10.0.1"])
def test_a_tensorrt_that_is_not_supported(version: str) -> None:
    with pytest.raises(ConfigError, match=f"TensorRT {version} is not supported"):
        TensorRt(types.SimpleNamespace(__version__=version))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fp64", "precision must be one of fp32, tf32, fp16, bf16, fp8, or one for each of .* not 'fp64'"),
        ("fp16", "prefix cannot be computed in fp16"),
        ("vision=fp16,prefix=fp16,denoise=fp32", "prefix cannot be computed in fp16"),
        ("vision=fp16", "name each of vision, prefix, denoise once"),
        ("vision=fp16,vision=fp32,prefix=fp32,denoise=fp32", "name each of vision, prefix, denoise once"),
        ("vision=fp16,prefix=fp32,expert=fp32", "name each of vision, prefix, denoise once"),
    ],
)
def test_arithmetic_that_cannot_work(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_arithmetic(text)


def test_arithmetic_of_each_component() -> None:
    assert parse_arithmetic("bf16") == ComponentArithmetic("bf16", "bf16", "bf16")
    mixed = parse_arithmetic("vision=fp16, prefix=tf32, denoise=fp32")
    assert mixed == ComponentArithmetic("fp16", "tf32", "fp32")
    assert mixed.form(4, "step") == GraphForm(4, "float16", "float32", "float32", "step")


@pytest.mark.parametrize("version", ["8.6.0", "10.13.0"])
def test_none_from_tensorrt_is_an_error(version: str, caplog: pytest.LogCaptureFixture) -> None:
    class WithoutContext:
        def create_execution_context(self, strategy: object) -> None: ...
        def create_execution_context_without_device_memory(self) -> None: ...

    tensorrt = TensorRt(make_tensorrt(version, HostDevice()))
    with pytest.raises(EngineError, match=f"TensorRT {version} cannot load an engine; the log says why"):
        tensorrt.load_engine(memoryview(b"not a plan"))
    assert any(record.levelname == "ERROR" for record in caplog.records)
    engine: Any = WithoutContext()
    with pytest.raises(EngineError, match="cannot create an execution context; the log says why"):
        tensorrt.create_context(engine, scratch=256, scratch_bytes=0)
