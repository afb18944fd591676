"""One MLP of an action expert in one thread and in all, by its size: `python -m benchmarks.denoise_threads`.

Lowest of several rounds that take turns, so that other work on the machine disturbs both alike.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

HORIZON = 10
SIZES = ((160, 448), (192, 640), (256, 768), (384, 1024), (1024, 4096))
_ROUNDS, _REPETITIONS = 12, 50


def microseconds(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, threads: int) -> float:
    """Of one MLP with weights `up` `[H, W]` and `down` `[W, H]` on `x` `[T, W]`."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    for _ in range(_REPETITIONS):
        F.linear(F.gelu(F.linear(x, up), approximate="tanh"), down)
    return 1e6 * (time.perf_counter() - began) / _REPETITIONS


@torch.inference_mode()
def main() -> None:
    """Print a line for each size."""
    every = torch.get_num_threads()
    for width, hidden in SIZES:
        x, up, down = torch.randn(HORIZON, width), torch.randn(hidden, width), torch.randn(width, hidden)
        one, all_of_them = (
            min(times)
            for times in zip(
                *([microseconds(x, up, down, threads) for threads in (1, every)] for _ in range(_ROUNDS)),
                strict=True,
            )
        )
        product = 1e-6 * HORIZON * width * hidden
        print(f"{product:6.2f} million a product: {one:7.0f} us in 1 thread, {all_of_them:7.0f} in {every}")


if __name__ == "__main__":
    main()
