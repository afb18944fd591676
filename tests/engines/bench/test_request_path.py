"""The wall time of a request, cut into parts."""

from __future__ import annotations

import pytest

from vlad_engines.bench.request_path import PARTS, split
from vlad_engines.bench.row import STAGES, Samples, measured

POLICY = {
    "infer_ms": 10.0,
    "preprocess_ms": 0.5,
    "vision_ms": 2.0,
    "prefix_ms": 3.0,
    "denoise_ms": 4.0,
    "overlapped_ms": 0.0,
    "postprocess_ms": 0.125,
}
SERVER = {"decode_ms": 0.25, "queue_ms": 0.0625, "infer_ms": 11.0, "total_ms": 12.0}


def test_every_millisecond_is_in_one_part() -> None:
    path = split([0.014], [POLICY], [SERVER])
    assert path is not None
    assert tuple(path) == PARTS
    assert {part: pytest.approx(1e3 * seconds) for part, (seconds,) in path.items()} == {
        "client": 2.0,
        "decode": 0.25,
        "queue": 0.0625,
        "worker": 0.5,
        "preprocess": 0.5,
        "backend": 1.0,
        "gpu": 9.0,
        "postprocess": 0.125,
        "answer": 0.5625,
    }
    assert sum(seconds for (seconds,) in path.values()) == pytest.approx(0.014)


def test_rows_have_medians_of_each_part() -> None:
    walls = [0.014, 0.020, 0.013]
    samples = Samples(dict.fromkeys(STAGES, walls), walls, 1.0, 3, split(walls, [POLICY] * 3, [SERVER] * 3))
    path_ms = measured(samples)["path_ms"]
    assert (path_ms["client"], path_ms["gpu"]) == (2.0, 9.0)


@pytest.mark.parametrize("missing", SERVER)
def test_a_server_that_leaves_a_time_out_gives_no_path(missing: str) -> None:
    told = {name: time_ms for name, time_ms in SERVER.items() if name != missing}
    assert split([0.014, 0.014], [POLICY] * 2, [SERVER, told]) is None
