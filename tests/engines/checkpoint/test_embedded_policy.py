"""The demo policy in the package: evaluated before it is put there, checked before it is served."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil

import pytest

from scripts.embed_demo_policy import embed
from vlad_configs.errors import CheckpointError
from vlad_engines.checkpoint.demo import demo_checkpoint
from vlad_engines.checkpoint.embedded_policy import LARGEST_BYTES, embedded_directory, embedded_policy
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint


@pytest.fixture
def trained(tmp_path: pathlib.Path) -> pathlib.Path:
    """A checkpoint that does not call itself random, with what only training needs beside it."""
    directory = tmp_path / "12000"
    shutil.copytree(demo_checkpoint(tmp_path / "cache"), directory)
    (directory / "checksums.json").unlink()
    config = json.loads((directory / "config.json").read_text())
    del config["weights"]
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "train_state.pt").write_bytes(b"state")
    return directory


@pytest.fixture
def table(tmp_path: pathlib.Path, trained: pathlib.Path) -> pathlib.Path:
    row = {
        "row": "reference",
        "status": "ran",
        "successes": 460,
        "episodes": 500,
        "interval": [0.893, 0.941],
        "wrong_object_rate": 0.012,
    }
    sha256 = hashlib.sha256((trained / "model.safetensors").read_bytes()).hexdigest()
    path = tmp_path / "success.json"
    path.write_text(json.dumps({"checkpoint": {"name": "12000", "sha256": sha256}, "rows": [row]}))
    return path


def test_an_embedded_policy_is_served_and_every_byte_of_it_checked(
    tmp_path: pathlib.Path, trained: pathlib.Path, table: pathlib.Path
) -> None:
    into = tmp_path / "demo_policy"
    embed(trained, table, into)
    assert embedded_policy(into) == into
    assert not (into / "train_state.pt").exists()
    assert "460 of 500, 95 % interval 89.3% to 94.1%" in (into / "README.md").read_text()
    assert open_policy_checkpoint(into).files.random_weights is False
    weights = bytearray((into / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (into / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"damaged: model.safetensors; install"):
        embedded_policy(into)
    (into / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"damaged: model.safetensors"):
        embedded_policy(into)


def test_nothing_embedded_is_no_error(tmp_path: pathlib.Path) -> None:
    assert embedded_policy(tmp_path) is None


def test_what_is_embedded_in_this_package_is_whole_and_small() -> None:
    directory = embedded_policy()
    if directory is not None:
        assert sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) <= LARGEST_BYTES
        assert not open_policy_checkpoint("demo").files.random_weights
    else:
        assert not embedded_directory().exists()


def test_a_policy_that_was_not_evaluated_is_refused(
    tmp_path: pathlib.Path, trained: pathlib.Path, table: pathlib.Path
) -> None:
    content = json.loads(table.read_text())
    content["checkpoint"]["sha256"] = "0" * 64
    table.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="other weights"):
        embed(trained, table, tmp_path / "demo_policy")
    with pytest.raises(CheckpointError, match="no table"):
        embed(trained, tmp_path / "absent.json", tmp_path / "demo_policy")
    with pytest.raises(CheckpointError, match="random weights"):
        embed(demo_checkpoint(tmp_path / "cache"), table, tmp_path / "demo_policy")
    assert not (tmp_path / "demo_policy").exists()
