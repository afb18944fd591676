"""A device that is full is emptied, one that is lost ends the process; anything else is nobody's fault."""

from __future__ import annotations

import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

from vlad_configs.errors import EngineError, ObservationError
from vlad_engines import device_faults
from vlad_engines.device_faults import DeviceFaults, fault_of


def _chained(error: Exception) -> EngineError:
    try:
        raise EngineError("denoising failed") from error
    except EngineError as chained:
        return chained


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (_chained(RuntimeError("cuMemAlloc failed: out of memory")), "out_of_memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "lost"),
        (RuntimeError("cuStreamSynchronize failed: unspecified launch failure"), "lost"),
        (_chained(RuntimeError("CUDA error: device-side assert triggered")), "lost"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (EngineError("the script says so"), None),
        (
            ObservationError("prompt", "a text", "out of memory; an illegal memory access was encountered"),
            None,
        ),
    ],
    ids=str,
)
def test_errors_are_told_apart(error: Exception, fault: str | None) -> None:
    assert fault_of(error) == fault


def test_torch_and_numpy_name_their_own_want_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert fault_of(caught.value) == "out_of_memory"
    with pytest.raises(MemoryError) as missing:
        np.zeros(1 << 60, np.uint8)
    assert fault_of(missing.value) == "out_of_memory"


def test_what_the_failed_request_held_is_let_go() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def compute() -> None:
        activations = torch.zeros(1000)
        held.append(weakref.ref(activations))
        np.zeros(1 << 60, np.uint8)

    exits: list[int] = []
    try:
        compute()
    except MemoryError as error:
        assert held[0]() is not None
        DeviceFaults(exits.append).react(error)
    assert held[0]() is None
    assert exits == []


def test_only_a_series_of_them_ends_the_process() -> None:
    now, exits = [0.0], list[int]()
    faults = DeviceFaults(exits.append, lambda: now[0])
    for seconds in (0.0, 40.0, 61.0):
        now[0] = seconds
        faults.react(MemoryError())
    assert exits == []
    now[0] = 62.0
    faults.react(MemoryError())
    assert exits == [device_faults.EXIT_CODE]


def test_the_module_brings_no_torch() -> None:
    program = "import sys, vlad_engines.answering; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_full_gpu_is_emptied_and_serves_on() -> None:
    """Needs any NVIDIA GPU, and takes all of its memory for a moment."""
    free_before, _ = torch.cuda.mem_get_info()
    exits: list[int] = []

    def compute() -> None:
        blocks = []
        while True:
            blocks.append(torch.empty(256 << 20, dtype=torch.uint8, device="cuda"))

    try:
        compute()
    except torch.OutOfMemoryError as error:
        fault = fault_of(error)
        DeviceFaults(exits.append).react(error)
    assert fault == "out_of_memory"
    free_after, _ = torch.cuda.mem_get_info()
    assert free_after > free_before - (512 << 20)
    assert float(torch.ones(1000, device="cuda").sum()) == 1000
    assert exits == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_bad_access_is_told_as_a_lost_device() -> None:
    """In a process of its own, because nothing can be computed in it afterwards."""
    program = (
        "import torch\n"
        "from vlad_engines.device_faults import DeviceFaults\n"
        "try:\n"
        "    table = torch.zeros(4, device='cuda')\n"
        "    table[torch.tensor([1 << 30], device='cuda')].sum().item()\n"
        "except Exception as error:\n"
        "    DeviceFaults().react(error)\n"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=False
    )
    assert result.returncode == device_faults.EXIT_CODE, result.stderr.decode()
