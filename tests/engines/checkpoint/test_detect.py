from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.checkpoints import write_json, write_libero
from vlad_configs.errors import CheckpointError
from vlad_engines.checkpoint.detect import open_checkpoint
from vlad_engines.checkpoint.header import read_header


def refusal(directory: pathlib.Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    return str(caught.value)


def touch(directory: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return directory


def save(directory: pathlib.Path, *names: str) -> pathlib.Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(1, np.float32) for name in names}, directory / "model.safetensors")
    return directory


def test_layouts_are_told_apart_by_content(tmp_path: pathlib.Path) -> None:
    assert open_checkpoint(save(tmp_path / "pi0_lerobot", "action_in_proj.weight")).layout == "openpi"
    lerobot = save(tmp_path / "pi05_openpi", "model.action_in_proj.weight")
    write_json(lerobot / "config.json", {"type": "pi05"})
    assert open_checkpoint(lerobot).layout == "lerobot"


def test_a_missing_an_empty_and_a_file_path_are_refused(tmp_path: pathlib.Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "is empty" in refusal(tmp_path)
    touch(tmp_path, "model.safetensors")
    assert "is a file; name the directory" in refusal(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["params/_METADATA", "params/manifest.ocdbt", "_METADATA"])
def test_a_jax_checkpoint_asks_for_conversion(tmp_path: pathlib.Path, name: str) -> None:
    message = refusal(touch(tmp_path, name, "assets/droid/norm_stats.json"))
    assert "JAX checkpoint; convert it to PyTorch first" in message
    assert "assets" in message


def test_a_hugging_face_cache_entry_names_its_snapshot(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "refs/main", "blobs/abc", "snapshots/0123/model.safetensors")
    assert "name the snapshot inside it: snapshots/0123" in refusal(tmp_path)


def test_a_folder_of_checkpoints_lists_them(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "10000/model.safetensors", "20000/model.safetensors")
    assert "folder of checkpoints; name one of them: 10000, 20000" in refusal(tmp_path)


def test_a_lerobot_training_step_names_its_pretrained_model(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "last/pretrained_model/model.safetensors")
    assert "last/pretrained_model" in refusal(tmp_path)


def test_split_weights_and_unfinished_downloads_are_recognised(tmp_path: pathlib.Path) -> None:
    split = touch(tmp_path / "a", "model.safetensors.index.json", "model-00001-of-00002.safetensors")
    assert "split over several files" in refusal(split)
    assert "unfinished (model.safetensors.partial)" in refusal(
        touch(tmp_path / "b", "model.safetensors.partial")
    )


def test_something_else_lists_what_is_there(tmp_path: pathlib.Path) -> None:
    message = refusal(touch(tmp_path, "pytorch_model.bin"))
    assert "holds no model.safetensors" in message
    assert "found: pytorch_model.bin" in message


def test_another_lerobot_policy_is_refused_by_type(tmp_path: pathlib.Path) -> None:
    write_json(save(tmp_path, "model.x") / "config.json", {"type": "smolvla"})
    assert "LeRobot policy of type 'smolvla'; only 'pi0' and 'pi05'" in refusal(tmp_path)


def test_lerobot_weights_without_their_config_are_refused(tmp_path: pathlib.Path) -> None:
    assert "config.json has no 'type'" in refusal(save(tmp_path, "model.action_in_proj.weight"))


@pytest.mark.parametrize("text", ["", "{", "[1]", '"pi0"'])
def test_a_half_written_config_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    (save(tmp_path, "x") / "config.json").write_text(text)
    assert "config.json" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 8, 200, -1])
def test_truncated_weights_are_refused_before_loading(tmp_path: pathlib.Path, keep: int) -> None:
    weights = write_libero(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    message = refusal(tmp_path)
    assert "model.safetensors is incomplete" in message
    assert "copy or convert the checkpoint again" in message


def test_trailing_bytes_are_refused(tmp_path: pathlib.Path) -> None:
    weights = save(tmp_path, "x") / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert "its header promises" in refusal(tmp_path)


@pytest.mark.parametrize("header", [b"not json", b"[]", b'{"x": {"shape": [1]}}', b'{"x": 3}'])
def test_a_file_of_another_format_is_refused(tmp_path: pathlib.Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "is not a safetensors file" in refusal(tmp_path)


def test_a_shape_that_contradicts_its_bytes_is_refused(tmp_path: pathlib.Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "tensor 'x' claims shape [2] F32 but holds 4 bytes" in refusal(tmp_path)


def test_a_header_reads_what_was_written(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(
        {"a": np.zeros((2, 3), np.float16), "b": np.zeros((), np.int64)}, path, metadata={"key": "value"}
    )
    header = read_header(path)
    assert {name: (entry.shape, entry.dtype) for name, entry in header.tensors.items()} == {
        "a": ((2, 3), "F16"),
        "b": ((), "I64"),
    }
    assert header.metadata == {"key": "value"}
    assert header.file_bytes == path.stat().st_size
