"""The chunks of a run, recorded by the daemon or computed again by a replay: what comparisons compare."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import ConfigError
from vlad_server.recordings.reader import SUFFIX, open_recording


@dataclasses.dataclass(frozen=True)
class Run:
    """Chunks of one policy, in the order of their requests.

    Attributes:
        source: the file, for people.
        policy: metadata of the policy that computed them; what is known of it.
        numbers: int64 `[requests]`; the exchanges of the recording, by which runs are matched.
        actions: float64 `[requests, action_horizon, action_width]` in the robot's units.
    """

    source: str
    policy: Mapping[str, Any]
    numbers: npt.NDArray[np.int64]
    actions: npt.NDArray[np.float64]

    @property
    def name(self) -> str:
        """How the chunks were computed, in a few words."""
        parts = [str(self.policy[key]) for key in ("backend", "precision") if key in self.policy]
        if "num_denoising_steps" in self.policy:
            parts.append(f"{self.policy['num_denoising_steps']} steps")
        return " ".join(parts) or pathlib.Path(self.source).name

    def save(self, path: pathlib.Path) -> None:
        """Write a numpy archive.

        Raises:
            OSError: where it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        about = json.dumps({"source": self.source, "policy": dict(self.policy)})
        with path.open("wb") as file:
            np.savez_compressed(file, about=np.array(about), numbers=self.numbers, actions=self.actions)


def load_run(path: pathlib.Path) -> Run:
    """Read the chunks of a recording (`.mcap`) or of a replay (`.npz`).

    Raises:
        ConfigError: for a file that holds none.
    """
    if path.suffix == SUFFIX:
        return _recorded(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            return Run(str(path), dict(about["policy"]), file["numbers"], file["actions"])
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is neither a recording (.mcap) nor the output of a replay") from error


def _recorded(path: pathlib.Path) -> Run:
    recording = open_recording(path)
    numbers, chunks = [], []
    for exchange in recording.exchanges():
        reply = recording.reply(exchange)
        if reply is not None:
            numbers.append(exchange.number)
            chunks.append(np.asarray(reply["actions"], np.float64))
    if not chunks:
        raise ConfigError(f"{path} holds no chunk")
    if len({chunk.shape for chunk in chunks}) > 1:
        raise ConfigError(f"{path} holds chunks of several shapes")
    return Run(str(path), recording.policy, np.array(numbers, np.int64), np.stack(chunks))
