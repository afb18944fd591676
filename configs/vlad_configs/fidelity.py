"""How close to the float32 reference a backend must be before a robot may run it.

Full-size pi0.5 with openpi's own bf16 arithmetic, ten steps, two and three cameras, on an H200 gives the
scale (float32 rotary tables / openpi's rounded ones): image tokens, keys and values of the worst layer
0.9999 / 0.987 in cosine, velocity 0.99987 / 0.9998, actions minus noise 0.99995 / 0.99993, normalised
action error p99 0.017 / 0.020 and max 0.020 / 0.024. Eager bf16 of the tiny test networks, which average over
fewer numbers, has a p99 of up to 0.04 and a max of up to 0.05.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vlad_configs.errors import ConfigError
from vlad_configs.precision import coarsest

ACTION_SCALE_FLOOR = 0.25
"""Smallest standard deviation by which an action error is divided, in normalised action units.

A column that the policy holds still, such as padding or a closed gripper, has no spread of its own; there
an error counts against a quarter of the unit to which norm stats bring every action."""


@dataclasses.dataclass(frozen=True)
class FidelityThresholds:
    """What a backend must reach; everything is measured against float32 on the same device.

    Attributes:
        component_cosine: least cosine of image tokens, of keys and of values in the worst layer, and of
            the velocity in the worst step, each in the worst observation.
        displacement_cosine: least cosine of actions minus noise in the worst observation.
        action_cosine: least cosine of the actions in the worst observation.
        action_error_p99, action_error_max: largest normalised action error (see `fidelity.metrics`).
    """

    component_cosine: float
    displacement_cosine: float
    action_cosine: float
    action_error_p99: float
    action_error_max: float

    def __post_init__(self) -> None:
        for name in ("component_cosine", "displacement_cosine", "action_cosine"):
            if not -1 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in -1..1, not {getattr(self, name)}")
        if not 0 < self.action_error_p99 <= self.action_error_max:
            raise ConfigError(
                "action errors must be positive and p99 at most max, not "
                f"{self.action_error_p99} and {self.action_error_max}"
            )


FIDELITY_THRESHOLDS: Mapping[str, FidelityThresholds] = {
    # Another order of float32 sums moves the actions by 2e-6 on a CPU and 3e-5 between frameworks; TF32,
    # which has the mantissa of a half, would move them by more than 1e-3 and must not pass.
    "fp32": FidelityThresholds(
        component_cosine=0.999999,
        displacement_cosine=0.999999,
        action_cosine=0.999999,
        action_error_p99=2e-4,
        action_error_max=1e-3,
    ),
    # Factors of ten mantissa bits instead of the seven of bf16, and nothing else is rounded: an eighth of
    # eager bf16's p99 above would be 0.002, and a 64th of its 1 - cosine 2e-6. Allowed is five to fifty
    # times that, and no more than a sixth of what bf16 may.
    "tf32": FidelityThresholds(
        component_cosine=0.9999,
        displacement_cosine=0.9999,
        action_cosine=0.9999,
        action_error_p99=0.01,
        action_error_max=0.03,
    ),
    # As fine as tf32, but activations are rounded as well. Nothing has been measured: bf16's must do.
    "fp16": FidelityThresholds(
        component_cosine=0.999,
        displacement_cosine=0.9995,
        action_cosine=0.999,
        action_error_p99=0.06,
        action_error_max=0.15,
    ),
    # Three times the p99 of openpi's bf16, and seven times the 1 - cosine of eager bf16. In the tiny networks
    # the least mistake of structure, the expert's positions off by one, costs 0.09 in p99, 1.7e-3 in the
    # velocity's 1 - cosine and 8e-4 in the displacement's; a wrong mask, norm or order of layers far more.
    "bf16": FidelityThresholds(
        component_cosine=0.999,
        displacement_cosine=0.9995,
        action_cosine=0.999,
        action_error_p99=0.06,
        action_error_max=0.15,
    ),
    # e4m3 has a mantissa of 3 bits: each product is off by 2.5 % (root mean square), which leaves a cosine
    # of 0.9994 after one layer and about 0.99 after the stack, where the residual is carried in bf16.
    "fp8": FidelityThresholds(
        component_cosine=0.98,
        displacement_cosine=0.99,
        action_cosine=0.99,
        action_error_p99=0.25,
        action_error_max=0.6,
    ),
}
"""By precision. Read by the daemon before it becomes ready and by `verify_policy`."""


def fidelity_thresholds(precision: str) -> FidelityThresholds:
    """The thresholds of a precision; where components differ, of the coarsest one.

    Raises:
        ConfigError: for anything that `parse_precision` does not read.
    """
    return FIDELITY_THRESHOLDS[coarsest(precision)]
