"""The rows of the table of backends: how one policy is served and played in each."""

from __future__ import annotations

import dataclasses
from typing import Mapping, Sequence

from vlad_libero.errors import LiberoError

REFERENCE = "reference"


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: of the row; also of its directory.
        variant: what differs from the reference beside backend, precision and steps.
        backend, precision: of `serve_policy`.
        steps: of denoising.
        serve: further arguments of `serve_policy`.
        play: further arguments of `eval_libero`.
    """

    name: str
    variant: str
    backend: str = "pytorch"
    precision: str = "fp32"
    steps: int = 10
    serve: tuple[str, ...] = ()
    play: tuple[str, ...] = ()

    def serve_arguments(self) -> list[str]:
        """For `serve_policy`, without checkpoint and ports.

        Whether a coarse precision is good enough is what the table shows: the check before the start, with
        its limits for large networks, must not answer for it.
        """
        arguments = ["--backend", self.backend, "--precision", self.precision, "--num-steps", str(self.steps)]
        coarse = [] if self.precision == "fp32" else ["--allow-low-fidelity"]
        return [*arguments, *coarse, *self.serve]

    def play_arguments(self) -> list[str]:
        """For `eval_libero`, without port, trials and directory."""
        return ["--backend", self.backend, "--variant", self.variant, *self.play]


def _delayed(mode: str, delay: int) -> Row:
    # A chunk has ten actions: those of the delay and those until the next request must fit into it.
    replan = 5 if delay <= 5 else 2
    return Row(
        name=f"{mode}-delay-{delay}",
        variant=f"{mode}, delay {delay}, replan {replan}",
        play=("--play", mode, "--delay-steps", str(delay), "--replan-steps", str(replan)),
    )


def _held_only(delay: int) -> Row:
    """As `rtc`, but the old chunk draws no actions beyond those that it will have executed meanwhile."""
    row = _delayed("rtc", delay)
    return dataclasses.replace(
        row,
        name=f"rtc-held-delay-{delay}",
        variant=row.variant.replace("rtc", f"rtc, prefix end {delay}"),
        play=(*row.play, "--rtc-prefix-end", str(delay)),
    )


ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row(REFERENCE, "lockstep"),
        Row("pytorch-bf16", "lockstep", precision="bf16"),
        Row("triton-bf16", "lockstep", backend="triton", precision="bf16"),
        Row("triton-fp8", "lockstep", backend="triton", precision="fp8"),
        Row("tensorrt", "lockstep", backend="tensorrt"),
        Row("tensorrt-pipelined", "lockstep", backend="tensorrt_pipelined"),
        *(Row(f"steps-{steps}", "lockstep", steps=steps) for steps in (5, 3, 1)),
        *(
            Row(f"pruned-{kept}", f"lockstep, {kept} image tokens", serve=("--keep-tokens", str(kept)))
            for kept in (64, 24)
        ),
        *(_delayed(mode, delay) for delay in (2, 4, 8) for mode in ("lockstep", "overlap", "rtc")),
        _held_only(2),
        Row("jpeg-q90", "lockstep, jpeg q90", play=("--image-encoding", "jpeg", "--quality", "90")),
    )
}
"""The table by name of its rows, in order."""


def chosen_rows(names: Sequence[str]) -> list[Row]:
    """Rows by name in the table's order, the reference always among them; all for no names.

    Raises:
        LiberoError: for an unknown name.
    """
    if unknown := [name for name in names if name not in ROWS]:
        raise LiberoError(f"there is no row '{unknown[0]}'; known: {', '.join(ROWS)}")
    wanted = {REFERENCE, *names} if names else set(ROWS)
    return [row for name, row in ROWS.items() if name in wanted]
