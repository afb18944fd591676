"""What the metadata frame says of the daemon, beside what it says of the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlad_configs.serving import ServeConfig
from vlad_server import roboarena
from vlad_server.images import ENCODINGS

PROTOCOL_VERSION = 1


def describe(policy: Mapping[str, Any], config: ServeConfig) -> dict[str, Any]:
    """The metadata frame of a daemon that serves a policy.

    Args:
        policy: its own metadata; where it can continue chunks, `vlad` in it holds a map `rtc`.
    """
    return {
        **roboarena.metadata_for(config.robot, policy.get("delta_mask")),
        **policy,
        "vlad": {
            "rtc": None,
            **policy.get("vlad", {}),
            "protocol": PROTOCOL_VERSION,
            "streaming": True,
            "deadlines": True,
            "doctor": True,
            "session_ttl_s": config.session_ttl_s,
            "image_encodings": list(ENCODINGS),
        },
    }
