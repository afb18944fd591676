from __future__ import annotations

import pathlib
import threading

import pytest

from vlad_configs.errors import CheckpointError
from vlad_engines.checkpoint.demo import cache_directory, demo_checkpoint
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint


def content(directory: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_two_builds_are_equal_byte_for_byte(tmp_path: pathlib.Path) -> None:
    first, second = demo_checkpoint(tmp_path / "a"), demo_checkpoint(tmp_path / "b")
    assert content(first) == content(second)
    assert 1e6 < sum(map(len, content(first).values())) < 8e6


def test_an_intact_build_is_used_again(tmp_path: pathlib.Path) -> None:
    weights = demo_checkpoint(tmp_path) / "model.safetensors"
    built = weights.stat().st_mtime_ns
    demo_checkpoint(tmp_path)
    assert weights.stat().st_mtime_ns == built


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checksums.json", "tokenizer.model"])
def test_a_damaged_build_is_built_anew(tmp_path: pathlib.Path, name: str) -> None:
    directory = demo_checkpoint(tmp_path)
    intact = content(directory)
    damaged = bytearray((directory / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (directory / name).write_bytes(damaged)
    assert content(demo_checkpoint(tmp_path)) == intact
    (directory / name).unlink()
    assert content(demo_checkpoint(tmp_path)) == intact


def test_several_at_once_build_it_once_and_leave_nothing_behind(tmp_path: pathlib.Path) -> None:
    found: list[pathlib.Path] = []
    threads = [threading.Thread(target=lambda: found.append(demo_checkpoint(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {found[0].name, "demo.lock"}


def test_the_cache_can_be_moved(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_directory({"VLAD_CACHE_DIR": str(tmp_path)}) == tmp_path
    monkeypatch.setenv("VLAD_CACHE_DIR", str(tmp_path))
    assert demo_checkpoint().parent == tmp_path


def test_a_cache_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="VLAD_CACHE_DIR"):
        demo_checkpoint(tmp_path / "file" / "cache")


def test_the_demo_says_that_its_weights_are_random(tmp_path: pathlib.Path) -> None:
    checkpoint = open_policy_checkpoint(demo_checkpoint(tmp_path))
    assert checkpoint.files.random_weights
    assert [warning for warning in checkpoint.warnings if "random" in warning]
    contract = checkpoint.contract
    assert (contract.environment.name, contract.model.family) == ("LIBERO", "pi05")
    assert (contract.model.action_horizon, contract.num_denoising_steps) == (10, 10)
    assert contract.prompt_template == "text"
