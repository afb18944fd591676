"""Refuses folders into which somebody else could have put code: TensorRT plans are programs for the GPU."""

from __future__ import annotations

import os
import pathlib
import stat

from vlad_configs.errors import ConfigError


def require_trusted(folder: pathlib.Path) -> None:
    """Accept a folder only where nobody but its owner can write, and its owner is this user or root.

    A folder on a read-only file system is trusted whatever its modes say.

    Raises:
        ConfigError: for any other; the text says how to repair it.
        OSError: where the folder is not there.
    """
    status = folder.stat()
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"others can write to {folder}, and engines are code; look at what is in it, "
            f"then run: chmod go-w {folder}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"{folder} belongs to user {status.st_uid}, and engines are code; "
            "name a folder of this user or of root"
        )
