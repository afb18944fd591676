"""Engines are loaded from folders that only their owner can write."""

from __future__ import annotations

import os
import pathlib

import pytest

from tests.engines.backends.tensorrt.test_cache import Builder, make_identity
from vlad_configs.errors import ConfigError
from vlad_engines.backends.tensorrt.cache import EngineCache, EngineFolder
from vlad_engines.trusted_folder import require_trusted


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500, 0o1755])
def test_a_folder_of_ones_own_is_trusted(tmp_path: pathlib.Path, mode: int) -> None:
    tmp_path.chmod(mode)
    require_trusted(tmp_path)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_a_folder_into_which_others_can_write_is_refused_with_the_repair(
    tmp_path: pathlib.Path, mode: int
) -> None:
    cache, identity = EngineCache(tmp_path), make_identity()
    cache.obtain(identity, Builder())
    tmp_path.chmod(mode)
    for load in (lambda: cache.obtain(identity, Builder()), lambda: EngineFolder(tmp_path)):
        with pytest.raises(ConfigError, match=rf"chmod go-w {tmp_path}"):
            load()
    tmp_path.chmod(mode & ~0o022)
    EngineFolder(tmp_path)


def test_a_new_cache_is_trusted_whatever_the_umask(tmp_path: pathlib.Path) -> None:
    before = os.umask(0)
    try:
        EngineCache(tmp_path / "engines").obtain(make_identity(), Builder())
    finally:
        os.umask(before)
    require_trusted(tmp_path / "engines")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_somebody_elses_folder_is_refused(tmp_path: pathlib.Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        require_trusted(tmp_path)
