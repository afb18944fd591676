"""Engines on disk: found by exact match, checked before use, built once however many processes ask.

A folder holds `COMPONENT-DIGEST.plan` and, written last, `COMPONENT-DIGEST.json`, the manifest. What has no
readable manifest, another identity or another checksum is not an engine; it is built anew and replaced. Files
appear complete or not at all, because a robot may be switched off at any moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import logging
import mmap
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from vlad_configs.errors import ConfigError, EngineError
from vlad_engines.backends.tensorrt.manifest import EngineIdentity, EngineManifest
from vlad_engines.export.fingerprint import buffer_digest
from vlad_engines.export.spec import Component
from vlad_engines.trusted_folder import require_trusted

logger = logging.getLogger("vlad.tensorrt")

Lookup = Literal["hit", "miss", "stale", "corrupt", "prebuilt"]
"""`stale` is an engine of another identity under this one's name."""

BuildPlan = Callable[[], Any]
"""Makes a plan: anything with the buffer protocol."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """An engine that may be loaded.

    Attributes:
        content: the mapped file, checked against the manifest.
        lookup: what was found when it was looked for.
        folder: where it lies.
    """

    manifest: EngineManifest
    content: memoryview
    folder: pathlib.Path
    lookup: Lookup = "hit"


class EngineCache:
    """A folder of engines that is filled as needed."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> pathlib.Path:
        """Where the engines are; may not exist yet."""
        return self._folder

    def obtain(self, identity: EngineIdentity, build: BuildPlan) -> Plan:
        """The engine of this identity; built if there is none, and only by one process.

        Args:
            build: called at most once, with the folder's lock for this engine held.

        Raises:
            ConfigError: where the folder cannot be written, or others can write to it as well.
            Whatever `build` raises; nothing is left behind then.
        """
        if self._folder.is_dir():
            require_trusted(self._folder)
        plan, lookup = _open_checked(self._folder, identity)
        if plan is not None:
            return plan
        try:
            self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            with _lock(self._folder / f"{_name(identity)}.lock"):
                # Another process may have built it while this one waited.
                plan, _ = _open_checked(self._folder, identity)
                if plan is None:
                    self._build(identity, build)
                    plan, _ = _open_checked(self._folder, identity)
        except OSError as error:
            raise ConfigError(f"engines cannot be kept in {self._folder}: {error}") from error
        if plan is None:
            raise EngineError(
                f"the {identity.component} engine was built and written to {self._folder}, but reading it "
                "back gave other bytes: check the disk"
            )
        return dataclasses.replace(plan, lookup=lookup)

    def _build(self, identity: EngineIdentity, build: BuildPlan) -> None:
        name = _name(identity)
        for leftover in self._folder.glob(f".{name}.*"):
            logger.info("removing %s, which a builder that was killed left behind", leftover)
            leftover.unlink()
        began = time.monotonic()
        content = memoryview(build()).cast("B")
        manifest = EngineManifest(
            identity=identity,
            plan_bytes=content.nbytes,
            plan_digest=buffer_digest(content),
            built_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            build_seconds=round(time.monotonic() - began, 1),
        )
        write_atomically(self._folder / f"{name}.plan", content)
        write_atomically(
            self._folder / f"{name}.json", json.dumps(manifest.to_json(), indent=1).encode("utf-8")
        )


class EngineFolder:
    """A folder of engines that somebody else filled. Nothing in it is ever written.

    Raises:
        ConfigError: where it is not there, or others can write to it.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"engine folder {folder} is not there")
        require_trusted(folder)
        self._folder = folder

    def find(self, component: Component, fits: Callable[[EngineIdentity], list[str]]) -> Plan:
        """The one engine of a component that fits.

        Args:
            fits: what speaks against an identity, in words; nothing where it fits.

        Raises:
            ConfigError: where none fits, with the reasons of the closest; where several fit, or the one
                that fits is damaged.
        """
        identities = list(self._identities(component))
        if not identities:
            raise ConfigError(f"there is no {component} engine in {self._folder}; make it with build_engines")
        faults = {identity.digest: fits(identity) for identity in identities}
        fitting = [identity for identity in identities if not faults[identity.digest]]
        if len(fitting) > 1:
            names = ", ".join(_name(identity) for identity in fitting)
            raise ConfigError(f"several {component} engines in {self._folder} fit: {names}; keep one")
        if not fitting:
            closest = min(faults.values(), key=len)
            raise ConfigError(f"no {component} engine in {self._folder} fits:\n  " + "\n  ".join(closest))
        plan, _ = _open_checked(self._folder, fitting[0])
        if plan is None:
            raise ConfigError(f"{self._folder / _name(fitting[0])}.plan is damaged: copy it again")
        return dataclasses.replace(plan, lookup="prebuilt")

    def _identities(self, component: Component) -> Iterator[EngineIdentity]:
        for path in sorted(self._folder.glob(f"{component}-*.json")):
            manifest = _read_manifest(path)
            if manifest is not None and manifest.identity.component == component:
                yield manifest.identity


class TimingCache:
    """What TensorRT learnt about kernels on one platform, so that later builds are faster."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def load(self) -> bytes:
        """What was stored, or nothing."""
        try:
            return self._path.read_bytes()
        except OSError:
            return b""

    def store(self, content: bytes) -> None:
        """Keep it. A place that cannot be written is no reason to fail a build."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, content)
        except OSError as error:
            logger.warning("the timing cache cannot be kept in %s: %s", self._path, error)


def write_atomically(path: pathlib.Path, content: bytes | memoryview) -> None:
    """Write a file that appears complete or not at all, also after a loss of power.

    Raises:
        OSError: where that is not possible.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    os.replace(file.name, path)


def _name(identity: EngineIdentity) -> str:
    return f"{identity.component}-{identity.digest}"


def _open_checked(folder: pathlib.Path, identity: EngineIdentity) -> tuple[Plan | None, Lookup]:
    """The engine of this identity, or else None; and what was found."""
    name = _name(identity)
    path = folder / f"{name}.json"
    manifest = _read_manifest(path)
    if manifest is None:
        return None, "corrupt" if path.exists() else "miss"
    if manifest.identity != identity:
        logger.warning("%s.json describes another engine than its name says", folder / name)
        return None, "stale"
    content = _map_file(folder / f"{name}.plan")
    if content is None or content.nbytes != manifest.plan_bytes:
        logger.warning("%s.plan is missing or of another size than its manifest says", folder / name)
        return None, "corrupt"
    if buffer_digest(content) != manifest.plan_digest:
        logger.warning("%s.plan is corrupt: its checksum differs", folder / name)
        return None, "corrupt"
    return Plan(manifest, content, folder), "hit"


def _read_manifest(path: pathlib.Path) -> EngineManifest | None:
    try:
        data = json.loads(path.read_text("utf-8"))
        return EngineManifest.from_json(data if isinstance(data, dict) else {})
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s is unreadable: %s", path, error)
        return None


def _map_file(path: pathlib.Path) -> memoryview | None:
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    """Held by one process at a time; the kernel lets go of it when that process dies."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is building %s; waiting for it", path.stem)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
