"""What the hex samples of `golden_vectors.json` stand for."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

_VECTORS = pathlib.Path(__file__).resolve().parents[1] / "golden" / "serving" / "golden_vectors.json"

WIRE_HEX: dict[str, str] = json.loads(_VECTORS.read_text())["wire_hex"]
"""By name, the bytes that openpi's own codec gave."""

WIRE_VALUES: dict[str, Any] = {
    "f32_2": np.array([1, 2], np.float32),
    "np.float32": np.float32(1.5),
    "np.float64": np.float64(1.5),
    "np.int64": np.int64(3),
    "np.bool_": np.bool_(True),
    "0d_f8": np.array(1.0),
    "0d_str": np.array("do it"),
    "empty_dict": {},
    "reply": {
        "actions": np.arange(6, dtype=np.float64).reshape(2, 3),
        "policy_timing": {"infer_ms": 1.5},
        "server_timing": {"infer_ms": 2.5, "prev_total_ms": 3.5},
    },
}
"""By the same names, the values that were encoded."""
