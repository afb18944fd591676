"""Exported folders, and the commands that make and use them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.host_tensorrt import HostDevice, make_tensorrt
from tests.support.tiny_networks import random_weights, tiny_config
from vlad_configs.errors import CheckpointError, ConfigError
from vlad_engines.backends.tensorrt import build_cli
from vlad_engines.backends.tensorrt.api import TensorRt
from vlad_engines.backends.tensorrt.arithmetic import parse_arithmetic
from vlad_engines.backends.tensorrt.graph_source import BundleGraphs
from vlad_engines.backends.tensorrt.manifest import BuildSettings
from vlad_engines.export import cli
from vlad_engines.export.bundle import BUNDLE_FILE, read_bundle
from vlad_engines.export.exporter import export_bundle
from vlad_engines.export.spec import COMPONENTS, GraphForm, ShapeKey, prompt_buckets, shape_keys

CONFIG = tiny_config("pi05")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("bundle")
    export_bundle(CONFIG, random_weights(CONFIG), GraphForm(2), path)
    return path


def copy(folder: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_what_was_written_is_read(folder: pathlib.Path) -> None:
    bundle = read_bundle(folder)
    assert (bundle.model, bundle.form) == (CONFIG, GraphForm(2))
    for component in COMPONENTS:
        bundle.check_files(component)
        assert bundle.path(component).is_file()


def test_a_folder_without_description_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no exported graphs.*export_onnx"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 0}, "has format 0, this version reads 2"),
        ({"model": {}}, "is unreadable"),
        ({"form": {"num_steps": 0}}, "num_steps must be at least 1"),
        ({"graphs": {}}, "is unreadable"),
    ],
)
def test_a_description_that_is_off_is_refused(
    folder: pathlib.Path, tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    content = json.loads((folder / BUNDLE_FILE).read_text())
    (tmp_path / BUNDLE_FILE).write_text(json.dumps({**content, **change}))
    with pytest.raises(ConfigError, match=message):
        read_bundle(tmp_path)


def append(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes() + b"?")


@pytest.mark.parametrize("name", ["prefix.onnx", "prefix.weights"])
@pytest.mark.parametrize(
    ("damage", "message"), [(append, "digest differs"), (pathlib.Path.unlink, "cannot be read")]
)
def test_a_damaged_file_is_refused(
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    name: str,
    damage: Callable[[pathlib.Path], Any],
    message: str,
) -> None:
    damage(copy(folder, tmp_path) / name)
    graphs = BundleGraphs(read_bundle(tmp_path))
    with graphs.onnx_file("vision"):
        pass
    with pytest.raises(ConfigError, match=message), graphs.onnx_file("prefix"):
        pass


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    weights = random_weights(CONFIG)
    weights["odd"] = weights.pop("time_mlp_in.bias")
    with pytest.raises(CheckpointError, match=r"missing time_mlp_in\.bias; unexpected odd"):
        export_bundle(CONFIG, weights, GraphForm(2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written to .*out"):
        export_bundle(CONFIG, random_weights(CONFIG), GraphForm(2), tmp_path / "out")


def test_the_command_exports_a_checkpoint(tmp_path: pathlib.Path) -> None:
    precision = "vision=fp16,prefix=tf32,denoise=fp32"
    bundle = cli.run(cli.Args("random:pi0_dummy", tmp_path, env="ALOHA", num_steps=2, precision=precision))
    assert read_bundle(tmp_path) == bundle
    assert bundle.model.family == "pi0"
    assert bundle.form == GraphForm(2, vision="float16")


def test_the_command_builds_exported_graphs_once(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    device = HostDevice()
    module = make_tensorrt("10.13.3.9", device)
    args = build_cli.Args(str(folder), tmp_path, cameras="2,3")
    for _ in range(2):
        plans = build_cli.build_engines(
            BundleGraphs(read_bundle(folder)),
            args,
            parse_arithmetic("fp32"),
            BuildSettings(optimization_level=1),
            TensorRt(module),
            device,
            lambda stage, fraction: None,
        )
        assert [len(plans[component].manifest.identity.profiles) for component in COMPONENTS] == [2, 2, 2]
    assert len(module.builds) == 3
    assert module.builds[0]["config"].builder_optimization_level == 1


def test_graphs_of_another_precision_are_not_built(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    device = HostDevice()
    tensorrt = TensorRt(make_tensorrt("10.13.3.9", device))
    with pytest.raises(ConfigError, match="export them again"):
        build_cli.build_engines(
            BundleGraphs(read_bundle(folder)),
            build_cli.Args(str(folder), tmp_path),
            parse_arithmetic("bf16"),
            BuildSettings(),
            tensorrt,
            device,
            lambda stage, fraction: None,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimization_level": 6}, r"optimization_level must lie in 0\.\.5, not 6"),
        ({"workspace_gib": -1.0}, "workspace_bytes must not be negative"),
        ({"precision": "fp16"}, "prefix cannot be computed in fp16"),
    ],
)
def test_arguments_that_cannot_work_are_refused(
    tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_cli.run(build_cli.Args("somewhere", tmp_path, **change))


@pytest.mark.parametrize(
    ("longest", "buckets"), [(12, (12,)), (32, (32,)), (48, (32, 48)), (200, (32, 64, 128, 200))]
)
def test_prompt_buckets_end_with_the_longest_prompt(longest: int, buckets: tuple[int, ...]) -> None:
    assert prompt_buckets(longest) == buckets


def test_shape_keys_are_all_combinations_the_largest_first() -> None:
    assert shape_keys(CONFIG, (1, 3), (1, 2)) == (
        ShapeKey(2, 3, 12),
        ShapeKey(2, 1, 12),
        ShapeKey(1, 3, 12),
        ShapeKey(1, 1, 12),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"vision": "fp16"}, "vision must be one of float32, float16, bfloat16, not 'fp16'"),
        ({"prefix": "float16"}, "cannot be computed in float16"),
        ({"denoise_form": "loop"}, "denoise_form must be 'step' or 'unrolled'"),
    ],
)
def test_forms_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GraphForm(**{"num_steps": 1, **values})
