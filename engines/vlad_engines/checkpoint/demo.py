"""The embedded demo: a tiny pi0.5 LIBERO policy with random weights, in openpi's checkpoint layout.

Built on first use into the user's cache, and loaded through the same code as any other checkpoint.
Every byte follows from this file and `demo_data/`, on any machine.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import logging
import math
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import platformdirs

from vlad_configs.errors import CheckpointError
from vlad_configs.models import GemmaConfig, ModelConfig, SiglipConfig
from vlad_configs.openpi_configs import OPENPI_CONFIGS
from vlad_engines.checkpoint.detect import CONFIG_FILE, WEIGHTS_FILE
from vlad_engines.checkpoint.norm_stats import NORM_STATS_FILE
from vlad_engines.checkpoint.tokenizer_file import TOKENIZER_NAMES
from vlad_engines.model.openpi_names import TIED_LM_HEAD, TOKEN_EMBEDDING, expected_tensors

logger = logging.getLogger("vlad.checkpoint")

DEMO = "demo"
"""Stands for the demo wherever a checkpoint directory can be named."""

DEMO_CONFIG = "pi05_libero"
CACHE_VARIABLE = "VLAD_CACHE_DIR"

_RECIPE = 1
"""Raise when the bytes change in a way that the rest of the recipe does not show."""

_CHECKSUMS = "checksums.json"
_LOCK_SECONDS = 120

_GEMMA: Mapping[str, int] = {"depth": 3, "num_heads": 8, "num_kv_heads": 1, "head_dim": 16}

DEMO_MODEL = ModelConfig(
    family="pi05",
    siglip=SiglipConfig(width=96, depth=3, mlp_dim=256, num_heads=4),
    vlm=GemmaConfig(width=128, mlp_dim=256, **_GEMMA),
    expert=GemmaConfig(width=96, mlp_dim=192, **_GEMMA),
    vocab_size=512,
    action_horizon=OPENPI_CONFIGS[DEMO_CONFIG].action_horizon,
    max_token_len=OPENPI_CONFIGS[DEMO_CONFIG].max_token_len,
)


def cache_directory(variables: Mapping[str, str] = os.environ) -> pathlib.Path:
    """Where built files are kept: `VLAD_CACHE_DIR`, or else the user's cache directory."""
    named = variables.get(CACHE_VARIABLE)
    return pathlib.Path(named).expanduser() if named else platformdirs.user_cache_path("vlad")


def demo_checkpoint(cache: pathlib.Path | None = None) -> pathlib.Path:
    """The directory of the demo, built where it does not exist or was damaged.

    Safe against several processes at once: one builds, the others wait.

    Raises:
        CheckpointError: where the cache cannot be written.
    """
    cache = cache_directory() if cache is None else cache
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / "demo.lock", timeout=_LOCK_SECONDS):
            directory = cache / f"demo-{_recipe_hash()}"
            if not _is_intact(directory):
                _build(directory)
            return directory
    except (OSError, filelock.Timeout) as error:
        raise CheckpointError(
            f"the demo cannot be kept in {cache}: {error}; name a writable directory in {CACHE_VARIABLE}"
        ) from error


def _config() -> dict[str, Any]:
    return {"model": DEMO_MODEL.to_json(), "openpi_config": DEMO_CONFIG, "weights": "random"}


def _data(name: str) -> bytes:
    return importlib.resources.files(__package__).joinpath("demo_data", name).read_bytes()


def _recipe_hash() -> str:
    recipe = json.dumps([_RECIPE, _config()], sort_keys=True).encode()
    return hashlib.sha256(recipe + _data(NORM_STATS_FILE) + _data(TOKENIZER_NAMES[0])).hexdigest()[:12]


def _build(directory: pathlib.Path) -> None:
    logger.info("building the demo checkpoint in %s", directory)
    if directory.exists():
        logger.warning("%s is damaged and built anew", directory)
        shutil.rmtree(directory)
    workshop = pathlib.Path(tempfile.mkdtemp(prefix="demo-", dir=directory.parent))
    try:
        _write(workshop)
        workshop.chmod(0o755)
        workshop.rename(directory)
    except BaseException:
        shutil.rmtree(workshop, ignore_errors=True)
        raise


def _write(directory: pathlib.Path) -> None:
    from safetensors.numpy import save_file  # only to make it

    assets = directory / "assets" / OPENPI_CONFIGS[DEMO_CONFIG].asset_id
    assets.mkdir(parents=True)
    (assets / NORM_STATS_FILE).write_bytes(_data(NORM_STATS_FILE))
    (directory / TOKENIZER_NAMES[0]).write_bytes(_data(TOKENIZER_NAMES[0]))
    (directory / CONFIG_FILE).write_text(json.dumps(_config(), indent=2) + "\n", "utf-8")
    tensors = {
        # openpi's own files hold the token table under the name of the tied head.
        TIED_LM_HEAD if name == TOKEN_EMBEDDING else name: _random_tensor(name, shape)
        for name, shape in expected_tensors(DEMO_MODEL).items()
    }
    save_file(tensors, directory / WEIGHTS_FILE)
    (directory / _CHECKSUMS).write_text(json.dumps(_checksums(directory), indent=2) + "\n", "utf-8")


def _random_tensor(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Uniform numbers from the raw stream of PCG64, which numpy keeps the same in all versions."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    unit = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    scale, offset = _scale(name, shape)
    return (unit * np.float32(math.sqrt(3) * scale) + np.float32(offset)).reshape(shape)


def _scale(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Standard deviation and mean that keep activations near one through random layers."""
    if len(shape) == 1:
        is_layer_norm = "layer_norm" in name or "post_layernorm" in name
        return 0.1, 1.0 if is_layer_norm and name.endswith(".weight") else 0.0
    if "position_embedding" in name:
        return 0.3, 0.0
    return 1 / math.sqrt(math.prod(shape[1:])), 0.0


def _checksums(directory: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != _CHECKSUMS
    }


def _is_intact(directory: pathlib.Path) -> bool:
    try:
        written = json.loads((directory / _CHECKSUMS).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(written == _checksums(directory))
