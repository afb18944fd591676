"""Copies `gs://` locations into `OPENPI_DATA_HOME`, where openpi keeps them too. Anonymous, over HTTPS."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pathlib
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import filelock

from vlad_configs.errors import CheckpointError

ENDPOINT = "https://storage.googleapis.com"
_TIMEOUT_S = 30
_LOCK_SECONDS = 24 * 3600
_BLOCK_BYTES = 1 << 20

ReportProgress = Callable[[int, int], None]
"""Told how many bytes have come, and how many there are."""


def cached_location(url: str, variables: Mapping[str, str] = os.environ) -> pathlib.Path:
    """Where a `gs://` location is kept: `OPENPI_DATA_HOME/<bucket>/<path>`.

    Raises:
        CheckpointError: for anything but `gs://BUCKET/PATH`.
    """
    parts = urllib.parse.urlparse(url)
    path = parts.path.strip("/")
    if parts.scheme != "gs" or not parts.netloc or not path or ".." in path.split("/"):
        raise CheckpointError(f"expected a location like gs://bucket/path, not '{url}'")
    home = pathlib.Path(variables.get("OPENPI_DATA_HOME") or "~/.cache/openpi").expanduser()
    return home / parts.netloc / path


def fetch(
    url: str,
    progress: ReportProgress,
    variables: Mapping[str, str] = os.environ,
    endpoint: str = ENDPOINT,
) -> pathlib.Path:
    """The local copy of a location, downloaded where there is none yet.

    Several processes may ask at once: one downloads, the others wait. Files that came whole stay when the
    rest fails, and are not fetched again.

    Raises:
        CheckpointError: where the place cannot be reached or holds nothing, where a file arrives damaged,
            and where the cache cannot be written.
    """
    target = cached_location(url, variables)
    if target.exists():
        return target
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.with_name(target.name + ".lock"), timeout=_LOCK_SECONDS):
            if not target.exists():
                _download(url, partial, progress, endpoint)
                os.replace(partial, target)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise CheckpointError(
            f"{url} cannot be fetched from {endpoint} ({error}); without a network, copy it to {target}"
        ) from error
    except (OSError, filelock.Timeout) as error:
        raise CheckpointError(
            f"{url} cannot be kept at {target}: {error}; name another place in OPENPI_DATA_HOME"
        ) from error
    return target


class _Counted:
    """Adds what came before to the bytes of one file."""

    def __init__(self, progress: ReportProgress, before: int, total: int) -> None:
        self._progress, self._before, self._total = progress, before, total

    def __call__(self, count: int) -> None:
        self._progress(self._before + count, self._total)


def _download(url: str, partial: pathlib.Path, progress: ReportProgress, endpoint: str) -> None:
    parts = urllib.parse.urlparse(url)
    bucket, prefix = parts.netloc, parts.path.strip("/")
    objects = [
        entry
        for entry in _list(endpoint, bucket, prefix)
        # A prefix is no folder: `pi05_libero` is also that of `pi05_libero_2`.
        if entry["name"] == prefix or entry["name"].startswith(f"{prefix}/")
    ]
    objects = [entry for entry in objects if not entry["name"].endswith("/")]
    if not objects:
        raise CheckpointError(f"{url} holds nothing")
    total, done = sum(int(entry["size"]) for entry in objects), 0
    if objects[0]["name"] != prefix:
        partial.mkdir(exist_ok=True)
    for entry in objects:
        relative = entry["name"][len(prefix) :].lstrip("/")
        if ".." in relative.split("/"):
            raise CheckpointError(f"{url} holds a file with an unsafe name: {entry['name']!r}")
        path = partial / relative if relative else partial
        if not path.is_file() or path.stat().st_size != int(entry["size"]):
            _copy(endpoint, bucket, entry, path, _Counted(progress, done, total))
        done += int(entry["size"])
        progress(done, total)


def _list(endpoint: str, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    token = ""
    while True:
        query = urllib.parse.urlencode({"prefix": prefix, **({"pageToken": token} if token else {})})
        address = f"{endpoint}/storage/v1/b/{urllib.parse.quote(bucket, safe='')}/o?{query}"
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as response:
            page = json.load(response)
        yield from page.get("items", [])
        token = page.get("nextPageToken", "")
        if not token:
            return


def _copy(
    endpoint: str, bucket: str, entry: Mapping[str, Any], path: pathlib.Path, progress: Callable[[int], None]
) -> None:
    """Copy one object; `progress` is told how many of its bytes have come."""
    name = urllib.parse.quote(entry["name"], safe="")
    address = f"{endpoint}/storage/v1/b/{urllib.parse.quote(bucket, safe='')}/o/{name}?alt=media"
    path.parent.mkdir(parents=True, exist_ok=True)
    coming = path.with_name(path.name + ".coming")
    digest, count = hashlib.md5(usedforsecurity=False), 0
    with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as response, coming.open("wb") as file:
        while block := response.read(_BLOCK_BYTES):
            file.write(block)
            digest.update(block)
            count += len(block)
            progress(count)
    # Objects that were put together from parts have no MD5.
    expected = entry.get("md5Hash")
    damaged = expected is not None and base64.b64encode(digest.digest()).decode() != expected
    if count != int(entry["size"]) or damaged:
        coming.unlink()
        raise CheckpointError(
            f"{entry['name']} arrived damaged ({count} of {entry['size']} bytes); try again"
        )
    shutil.move(coming, path)
