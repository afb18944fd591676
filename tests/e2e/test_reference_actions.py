"""What the daemon is for: a robot gets the actions that openpi itself would have computed.

Every recorded deployment is written as a checkpoint directory and served with openpi's own command line;
the request and the noise travel over the wire.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests.support import openpi_client
from tests.support.daemon import start_daemon
from tests.support.golden import require_file
from tests.support.golden_deployments import Case, deployment_arrays, deployment_request, write_deployment
from tests.support.golden_lists import listed
from tests.support.robot import connect_robot

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4


def serve_arguments(directory: pathlib.Path, case: Case) -> list[str]:
    return [
        "--precision=fp32",
        "--device=cpu",
        f"--tokenizer={require_file('tiny_tokenizer.model')}",
        "policy:checkpoint",
        f"--policy.config={case[1]['official_config']}",
        f"--policy.dir={directory}",
    ]


@pytest.mark.parametrize("case", listed("policy_e2e.json"))
def test_a_robot_receives_the_reference_chunk(tmp_path: pathlib.Path, case: Case) -> None:
    arrays = deployment_arrays(case)
    request = {**deployment_request(case), "vlad/noise": arrays["noise"]}
    arguments = serve_arguments(write_deployment(tmp_path, case), case)
    with start_daemon(*arguments) as daemon, connect_robot(daemon.port) as robot:
        first, second = robot.infer(request), robot.infer(request)
        assert robot.metadata["weights"] != "random"
    assert first["actions"].dtype == np.float64
    np.testing.assert_allclose(first["actions"], arrays["actions"], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(second["actions"], first["actions"])


@pytest.mark.openpi_client
@pytest.mark.parametrize("case", listed("policy_e2e.json"))
def test_the_released_client_receives_the_reference_chunk(
    pytestconfig: pytest.Config, tmp_path: pathlib.Path, case: Case
) -> None:
    client = openpi_client.install(pytestconfig.cache.mkdir("openpi-client"), "15.0.1")
    arrays = deployment_arrays(case)
    request = {**deployment_request(case), "vlad/noise": arrays["noise"]}
    with start_daemon(*serve_arguments(write_deployment(tmp_path, case), case)) as daemon:
        replies = client.infer(daemon.port, [request], tmp_path)
    np.testing.assert_allclose(replies["0|actions"], arrays["actions"], rtol=0, atol=TOLERANCE)
