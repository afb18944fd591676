"""The released openpi client works unchanged, whatever `websockets` it was installed with."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests.support import openpi_client
from tests.support.daemon import start_scripted_daemon
from tests.support.observations import observation_for
from tests.support.scripted_worker import expected_chunk

pytestmark = pytest.mark.openpi_client

STATE_KEYS = {
    "LIBERO": ["observation/state"],
    "DROID": ["observation/joint_position", "observation/gripper_position"],
    "ALOHA": ["state"],
    "ALOHA_SIM": ["state"],
}
ACTION_WIDTHS = {"LIBERO": 7, "DROID": 8, "ALOHA": 14, "ALOHA_SIM": 14}


@pytest.mark.parametrize("environment", ACTION_WIDTHS)
@pytest.mark.parametrize("websockets", ["13.1", "14.1", "15.0.1", "17.4"])
def test_released_client_gets_its_chunks(
    pytestconfig: pytest.Config, tmp_path: pathlib.Path, environment: str, websockets: str
) -> None:
    client = openpi_client.install(pytestconfig.cache.mkdir("openpi-client"), websockets)
    observations = [observation_for(environment, seed) for seed in range(3)]
    # The client connects while the policy still loads: this version of it never retries.
    with start_scripted_daemon(environment=environment, start_s=0.5) as daemon:
        replies = client.infer(daemon.port, observations, tmp_path)
    assert str(replies["websockets"]) == websockets
    assert replies["metadata"]["family"] == "scripted"
    for index, observation in enumerate(observations):
        state = np.concatenate([observation[key] for key in STATE_KEYS[environment]])
        actions = replies[f"{index}|actions"]
        assert actions.dtype == np.float64
        np.testing.assert_array_equal(actions, expected_chunk(state, ACTION_WIDTHS[environment]))
        assert replies[f"{index}|keys"].tolist() == ["actions", "policy_timing", "server_timing"]
        policy_timing, server_timing = replies[f"{index}|timing"]
        assert policy_timing["infer_ms"] <= server_timing["infer_ms"] + 0.5
        assert ("prev_total_ms" in server_timing) == (index > 0)
