"""Token pruning from the command line to the reply and the metrics."""

from __future__ import annotations

from tests.support.daemon import start_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot


def test_a_pruned_policy_tells_how_many_image_tokens_it_kept() -> None:
    arguments = ["--checkpoint=demo", "--device=cpu", "--keep-tokens=64", "--pruning-mode=union"]
    with start_daemon(*arguments) as daemon:
        daemon.wait_ready(200)
        with connect_robot(daemon.port) as robot:
            timing = robot.infer(libero_observation())["policy_timing"]
            assert robot.metadata["token_pruning"]["keep_tokens"] == 64
        assert 1 <= timing["image_tokens_kept"] <= 64
        assert timing["image_tokens_voted"] >= timing["image_tokens_kept"]
        assert daemon.metric("vlad_image_tokens_kept") == timing["image_tokens_kept"]
