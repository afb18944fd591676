from __future__ import annotations

import csv
import json
import pathlib
import socket
import time
from typing import Any

import numpy as np
import pytest

from tests.support.reference_server import ReferenceServer, counting_policy
from vlad_client import simple_client
from vlad_client.observations import ENVIRONMENTS, random_observation

SHAPES: dict[str, dict[str, Any]] = {
    "LIBERO": {
        "observation/state": (8,),
        "observation/image": (224, 224, 3),
        "observation/wrist_image": (224, 224, 3),
    },
    "DROID": {
        "observation/exterior_image_1_left": (224, 224, 3),
        "observation/wrist_image_left": (224, 224, 3),
        "observation/joint_position": (7,),
        "observation/gripper_position": (1,),
    },
    "ALOHA": {
        "state": (14,),
        "images": dict.fromkeys(("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"), (3, 224, 224)),
    },
}
SHAPES["ALOHA_SIM"] = SHAPES["ALOHA"]


def _shapes(observation: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _shapes(value) if isinstance(value, dict) else value.shape
        for key, value in observation.items()
        if key != "prompt"
    }


def test_two_calls_warm_up_and_the_rest_fill_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    def slow(observation: dict[str, Any]) -> Any:
        time.sleep(0.02)
        return counting_policy(observation)

    with ReferenceServer(slow, metadata={"config": "pi05_libero"}) as server:
        arguments = ["--host=127.0.0.1", "--port", str(server.port), "--num_steps=7", "--env", "LIBERO"]
        assert simple_client.main(arguments) == 0
        assert len(server.observations) == 2 + 7
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0] == "server metadata: {'config': 'pi05_libero'}"
    assert lines[1] == "Timing statistics of 7 calls"
    assert [line.split()[0] for line in lines[3:]] == [
        "client_infer_ms",
        "policy_infer_ms",
        "server_infer_ms",
        "server_prev_total_ms",
    ]
    assert float(lines[3].split()[1]) >= 20.0
    assert lines[4].split()[1:] == ["1.5", "0.0", *["1.5"] * 6]
    assert "running policy" in output.err
    assert "7/7" in output.err


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_observations_have_the_shape_of_the_environment(environment: str) -> None:
    with ReferenceServer() as server:
        arguments = ["--host", "127.0.0.1", "--port", str(server.port), "--num-steps", "1"]
        assert simple_client.main([*arguments, "--env", environment]) == 0
        for observation in server.observations:
            assert _shapes(observation) == SHAPES[environment]
            assert isinstance(observation["prompt"], str)


def test_every_observation_is_another_one() -> None:
    random = np.random.default_rng(0)
    one, two = (random_observation("LIBERO", random)["observation/image"] for _ in range(2))
    assert not np.array_equal(one, two)


def test_an_unknown_environment_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown environment 'libero'; known: ALOHA, ALOHA_SIM, DROID, LIBERO"
    ):
        random_observation("libero", np.random.default_rng())


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_timings_are_written_where_asked(suffix: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"timing{suffix}"
    with ReferenceServer() as server:
        arguments = ["--host=127.0.0.1", f"--port={server.port}", "--num-steps=3", f"--timing-file={path}"]
        assert simple_client.main(arguments) == 0
    if suffix == ".csv":
        with path.open() as file:
            assert [row["policy_infer_ms"] for row in csv.DictReader(file)] == ["1.5"] * 3
    else:
        assert len(json.loads(path.read_text())["calls"]) == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--timing-file", "timing.parquet"], "written as .csv or .json, not 'timing.parquet'"),
        (["--env", "libero"], "invalid choice: 'libero'"),
        (["--num-steps", "0"], "must be positive, not 0"),
        (["--num", "3"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        simple_client.main(arguments)
    assert exit.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_api_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLAD_API_KEY", "secret")
    with ReferenceServer(api_key="secret") as server:
        assert simple_client.main(["--host=127.0.0.1", f"--port={server.port}", "--num-steps=1"]) == 0


def test_help_does_not_show_the_api_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLAD_API_KEY", "secret")
    with pytest.raises(SystemExit):
        simple_client.main(["--help"])
    assert "secret" not in capsys.readouterr().out


def test_a_failing_server_ends_the_command_with_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(observation: dict[str, Any]) -> Any:
        raise KeyError("observation/image")

    with ReferenceServer(fail) as server:
        assert simple_client.main(["--host=127.0.0.1", f"--port={server.port}"]) == 1
    error = capsys.readouterr().err
    assert "simple_client: Error in inference server:" in error
    assert "KeyError: 'observation/image'" in error


def test_a_refused_connection_ends_the_command_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert simple_client.main(["--host=robot-lab"]) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("simple_client: the host of ws://robot-lab:8000")
    )
