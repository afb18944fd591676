"""The pi0 / pi0.5 configurations that openpi can serve, by name.

Values: openpi `training/config.py` and `training/misc/`. pi0-FAST configurations are not listed,
because this project serves flow-matching policies only.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from vlad_configs.errors import ConfigError
from vlad_configs.models import Family

_ALOHA_DELTA = (True,) * 6 + (False,) + (True,) * 6 + (False,)
_LIBERO_DELTA = (True,) * 6 + (False,)
_DROID_DELTA = (True,) * 7 + (False,)
_RESET_POSE: Mapping[str, Any] = {"reset_pose": [0, -1.5, 1.5, 0, 0, 0]}


@dataclasses.dataclass(frozen=True)
class OpenpiConfig:
    """What a named openpi configuration fixes beyond the weights.

    Attributes:
        environment: robot whose keys it uses, a name of `ENVIRONMENTS`.
        discrete_state_input: True where the normalised state is written into the prompt.
        asset_id: folder of the norm stats below `assets/`.
        delta_mask: see `Contract.delta_mask`.
    """

    environment: str
    family: Family
    action_horizon: int
    max_token_len: int
    discrete_state_input: bool
    asset_id: str
    delta_mask: tuple[bool, ...] | None = None
    default_prompt: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    action_dim: int = 32


def _pi0(environment: str, action_horizon: int, asset_id: str, **extra: Any) -> OpenpiConfig:
    return OpenpiConfig(
        environment, "pi0", action_horizon, extra.pop("max_token_len", 48), False, asset_id, **extra
    )


def _pi05(environment: str, action_horizon: int, asset_id: str, **extra: Any) -> OpenpiConfig:
    discrete = extra.pop("discrete_state_input", True)
    return OpenpiConfig(environment, "pi05", action_horizon, 200, discrete, asset_id, **extra)


_LIBERO_ASSETS = "physical-intelligence/libero"
_ALOHA_SIM_ASSETS = "lerobot/aloha_sim_transfer_cube_human"

OPENPI_CONFIGS: Mapping[str, OpenpiConfig] = {
    "pi0_aloha": _pi0("ALOHA", 50, "trossen", delta_mask=_ALOHA_DELTA, metadata=_RESET_POSE),
    "pi05_aloha": _pi05("ALOHA", 50, "trossen", delta_mask=_ALOHA_DELTA, metadata=_RESET_POSE),
    "pi0_aloha_towel": _pi0(
        "ALOHA", 50, "trossen", delta_mask=_ALOHA_DELTA, metadata=_RESET_POSE, default_prompt="fold the towel"
    ),
    "pi0_aloha_tupperware": _pi0(
        "ALOHA",
        50,
        "trossen",
        delta_mask=_ALOHA_DELTA,
        metadata=_RESET_POSE,
        default_prompt="open the tupperware and put the food on the plate",
    ),
    "pi0_aloha_pen_uncap": _pi0(
        "ALOHA", 50, "trossen", delta_mask=_ALOHA_DELTA, default_prompt="uncap the pen"
    ),
    "pi05_aloha_pen_uncap": _pi05(
        "ALOHA", 50, "trossen", delta_mask=_ALOHA_DELTA, default_prompt="uncap the pen"
    ),
    "pi0_aloha_sim": _pi0("ALOHA_SIM", 50, _ALOHA_SIM_ASSETS, default_prompt="Transfer cube"),
    "pi0_droid": _pi0("DROID", 10, "droid"),
    "pi05_droid": _pi05("DROID", 15, "droid"),
    "pi05_droid_finetune": _pi05("DROID", 16, "droid"),
    "pi05_full_droid_finetune": _pi05("DROID", 16, "droid", delta_mask=_DROID_DELTA),
    "pi05_droid_jointpos_polaris": _pi05("DROID", 15, "droid", delta_mask=_DROID_DELTA),
    "pi0_droid_jointpos_polaris": _pi0("DROID", 10, "droid", max_token_len=100, delta_mask=_DROID_DELTA),
    "pi0_droid_jointpos_100k_polaris": _pi0("DROID", 10, "droid", max_token_len=100, delta_mask=_DROID_DELTA),
    "pi0_libero": _pi0("LIBERO", 50, _LIBERO_ASSETS, delta_mask=_LIBERO_DELTA),
    "pi0_libero_low_mem_finetune": _pi0("LIBERO", 50, _LIBERO_ASSETS, delta_mask=_LIBERO_DELTA),
    "pi05_libero": _pi05("LIBERO", 10, _LIBERO_ASSETS, discrete_state_input=False),
    "pi05_libero_pytorch": _pi05("LIBERO", 10, _LIBERO_ASSETS, discrete_state_input=False),
    "pi05_libero_pytorch_lightvla": _pi05("LIBERO", 10, _LIBERO_ASSETS, discrete_state_input=False),
    # Ours: the network writes its sizes into config.json, prompt length included.
    "pi05_libero_small": _pi05("LIBERO", 10, "vlad/libero_spatial"),
}


def openpi_config(name: str) -> OpenpiConfig:
    """Look a configuration up.

    Raises:
        ConfigError: for an unknown name, with the closest known one.
    """
    if name in OPENPI_CONFIGS:
        return OPENPI_CONFIGS[name]
    closest = difflib.get_close_matches(name, OPENPI_CONFIGS, n=1, cutoff=0.0)
    raise ConfigError(
        f"config '{name}' not found; did you mean '{closest[0]}'? known: {', '.join(sorted(OPENPI_CONFIGS))}"
    )
