"""Engines are found by exact match, checked before use, and built once."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pathlib
import stat
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.tiny_networks import tiny_config
from vlad_configs.errors import ConfigError
from vlad_engines.backends.tensorrt.cache import EngineCache, EngineFolder, TimingCache
from vlad_engines.backends.tensorrt.manifest import BuildSettings, EngineIdentity, EngineManifest, Platform
from vlad_engines.export.spec import GraphForm

CONTENT = bytes(range(256)) * 100


def make_identity(**changes: Any) -> EngineIdentity:
    values: dict[str, Any] = {
        "component": "prefix",
        "model": tiny_config("pi05"),
        "form": GraphForm(4),
        "arithmetic": "fp32",
        "weights_digest": "w" * 64,
        "graph_digest": "g" * 64,
        "calibration": None,
        "profiles": ({"image_tokens": (1, 8, 40), "prompt_tokens": (1, 12)},),
        "platform": Platform("10.13.0", "NVIDIA H200", "9.0"),
        "settings": BuildSettings(),
        "flags": ("STRONGLY_TYPED",),
    }
    return EngineIdentity(**{**values, **changes})


class Builder:
    """Counts how often a plan had to be made."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.calls = 0
        self._content = content

    def __call__(self) -> bytes:
        self.calls += 1
        return self._content


def refuse_to_build() -> bytes:
    raise AssertionError("this engine must come from the folder")


def only_file(folder: pathlib.Path, suffix: str) -> pathlib.Path:
    (path,) = folder.glob(f"*{suffix}")
    return path


def test_an_engine_is_built_once_and_then_found(tmp_path: pathlib.Path) -> None:
    builder, identity = Builder(), make_identity()
    assert bytes(EngineCache(tmp_path / "new" / "folder").obtain(identity, builder).content) == CONTENT
    plan = EngineCache(tmp_path / "new" / "folder").obtain(identity, refuse_to_build)
    assert bytes(plan.content) == CONTENT
    assert plan.manifest.identity == identity
    assert builder.calls == 1


OTHERS = {
    "component": "denoise",
    "model": dataclasses.replace(tiny_config("pi05"), action_horizon=6),
    "form": GraphForm(5),
    "arithmetic": "tf32",
    "weights_digest": "x" * 64,
    "graph_digest": "h" * 64,
    "calibration": "c" * 64,
    "profiles": ({"image_tokens": (1, 8, 40), "prompt_tokens": (1, 11)},),
    "platform": Platform("10.13.1", "NVIDIA H200", "9.0"),
    "settings": BuildSettings(optimization_level=2),
    "flags": (),
}


def test_every_field_is_tried() -> None:
    assert OTHERS.keys() == {field.name for field in dataclasses.fields(EngineIdentity)}


@pytest.mark.parametrize("field", OTHERS)
def test_an_engine_that_differs_in_anything_is_another_engine(tmp_path: pathlib.Path, field: str) -> None:
    cache, first, second = EngineCache(tmp_path), Builder(b"first"), Builder(b"second")
    one, other = make_identity(), make_identity(**{field: OTHERS[field]})
    cache.obtain(one, first)
    assert bytes(cache.obtain(other, second).content) == b"second"
    assert bytes(cache.obtain(one, refuse_to_build).content) == b"first"
    (difference,) = one.differences(other)
    assert difference.startswith(field)


def flip_a_byte(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def describe_another(path: pathlib.Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["identity"]["weights_digest"] = "0" * 64
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("suffix", "damage", "lookup"),
    [
        (".plan", flip_a_byte, "corrupt"),
        (".plan", lambda path: path.write_bytes(CONTENT[:-1]), "corrupt"),
        (".plan", lambda path: path.write_bytes(b""), "corrupt"),
        (".plan", pathlib.Path.unlink, "corrupt"),
        (".json", pathlib.Path.unlink, "miss"),
        (".json", lambda path: path.write_text("{"), "corrupt"),
        (".json", lambda path: path.write_text("[]"), "corrupt"),
        (".json", lambda path: path.write_text('{"format": 0}'), "corrupt"),
        (".json", lambda path: path.write_bytes(b"\xff\xfe"), "corrupt"),
        (".json", describe_another, "stale"),
    ],
)
def test_what_is_damaged_or_foreign_is_built_again(
    tmp_path: pathlib.Path, suffix: str, damage: Callable[[pathlib.Path], Any], lookup: str
) -> None:
    cache, identity = EngineCache(tmp_path), make_identity()
    cache.obtain(identity, Builder())
    damage(only_file(tmp_path, suffix))
    builder = Builder()
    rebuilt = cache.obtain(identity, builder)
    assert (bytes(rebuilt.content), rebuilt.lookup) == (CONTENT, lookup)
    assert builder.calls == 1
    found = cache.obtain(identity, refuse_to_build)
    assert (bytes(found.content), found.lookup) == (CONTENT, "hit")


def test_a_failed_build_leaves_nothing_and_may_be_tried_again(tmp_path: pathlib.Path) -> None:
    cache, identity = EngineCache(tmp_path), make_identity()

    def fail() -> bytes:
        raise RuntimeError("no kernel for this")

    with pytest.raises(RuntimeError, match="no kernel"):
        cache.obtain(identity, fail)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert bytes(cache.obtain(identity, Builder()).content) == CONTENT


def _obtain_slowly(folder: pathlib.Path, start: Any, built: Any) -> None:
    def build() -> bytes:
        with built.get_lock():
            built.value += 1
        return CONTENT

    start.wait()
    EngineCache(folder).obtain(make_identity(), build)


def test_several_processes_build_an_engine_once(tmp_path: pathlib.Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, built = context.Event(), context.Value("i", 0)
    processes = [context.Process(target=_obtain_slowly, args=(tmp_path, start, built)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert built.value == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(ConfigError, match="engines cannot be kept in"):
        EngineCache(tmp_path).obtain(make_identity(), Builder())


def test_a_file_where_the_folder_should_be_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "engines").write_text("")
    with pytest.raises(ConfigError, match=r"engines cannot be kept in .*engines"):
        EngineCache(tmp_path / "engines").obtain(make_identity(), Builder())


def test_prebuilt_engines_are_only_read(tmp_path: pathlib.Path) -> None:
    identity = make_identity()
    EngineCache(tmp_path).obtain(identity, Builder())
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    plan = EngineFolder(tmp_path).find("prefix", identity.differences)
    assert (bytes(plan.content), plan.lookup) == (CONTENT, "prebuilt")
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_prebuilt_engine_that_does_not_fit_is_refused_with_the_reasons(tmp_path: pathlib.Path) -> None:
    EngineCache(tmp_path).obtain(make_identity(), Builder())
    EngineCache(tmp_path).obtain(make_identity(weights_digest="y" * 64, flags=()), Builder())
    wanted = make_identity(platform=Platform("8.6.0", "NVIDIA H200", "9.0"))
    with pytest.raises(ConfigError) as refusal:
        EngineFolder(tmp_path).find("prefix", lambda found: found.differences(wanted))
    assert str(refusal.value).endswith("fits:\n  platform.tensorrt: 10.13.0, not 8.6.0")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: only_file(folder, ".json").unlink(), "there is no prefix engine in"),
        (lambda folder: only_file(folder, ".json").write_text("{"), "there is no prefix engine in"),
        (lambda folder: flip_a_byte(only_file(folder, ".plan")), "is damaged"),
        (
            lambda folder: EngineCache(folder).obtain(make_identity(flags=()), Builder()),
            "several prefix engines",
        ),
    ],
)
def test_a_folder_that_holds_no_single_good_engine_is_refused(
    tmp_path: pathlib.Path, spoil: Callable[[pathlib.Path], Any], message: str
) -> None:
    EngineCache(tmp_path).obtain(make_identity(), Builder())
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=message):
        EngineFolder(tmp_path).find("prefix", lambda found: [])


def test_a_folder_that_is_not_there_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="nowhere is not there"):
        EngineFolder(tmp_path / "nowhere")


def test_a_manifest_survives_its_file() -> None:
    manifest = EngineManifest(make_identity(), 5, "d" * 64, "2026-01-01T00:00:00+00:00", 1.5)
    assert EngineManifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_a_timing_cache_is_kept_and_its_loss_forgiven(tmp_path: pathlib.Path) -> None:
    cache = TimingCache(tmp_path / "deep" / "timing.cache")
    assert cache.load() == b""
    cache.store(b"learnt")
    assert TimingCache(tmp_path / "deep" / "timing.cache").load() == b"learnt"
    (tmp_path / "file").write_text("")
    TimingCache(tmp_path / "file" / "timing.cache").store(b"learnt")
