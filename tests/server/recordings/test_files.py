"""Recording files: what goes in comes out, Foxglove's part is there, and a cut costs only what it cuts."""

from __future__ import annotations

import base64
import io
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from mcap.reader import make_reader
from PIL import Image

from tests.support.fidelity import checkpoint
from tests.support.libero import libero_observation
from tests.support.recordings import NOISE_SHAPE, exchange, write_recording
from tests.support.small_disk import run_on_small_disk
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ConfigError
from vlad_engines.fidelity.observations import (
    calibration_observations,
    recorded_observations,
    synthetic_observations,
)
from vlad_engines.fidelity.verify import make_processor
from vlad_engines.processing.noise import NoiseSource
from vlad_server import wire
from vlad_server.recordings.exchange import pipe_parts, read_pipe
from vlad_server.recordings.reader import open_recording, recorded_requests


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    exchanges = [exchange(number) for number in range(6)]
    (path,) = write_recording(tmp_path_factory.mktemp("recording"), exchanges)
    return path


def test_exchanges_come_back_as_they_were(one_file: pathlib.Path) -> None:
    recording = open_recording(one_file)
    assert recording.robot is ENVIRONMENTS["LIBERO"]
    assert recording.policy["noise_shape"] == list(NOISE_SHAPE)
    for number, came in enumerate(recording.exchanges()):
        written = exchange(number)
        assert (came.request, came.reply, came.seed) == (written.request, written.reply, number)
        assert (came.received_ns, came.replied_ns) == (written.received_ns, written.replied_ns)
        np.testing.assert_equal(recording.observation(came), libero_observation(number))
        np.testing.assert_array_equal(recording.reply(came)["actions"], np.full((10, 7), number))  # type: ignore[index]
    assert number == 5


def test_the_recorded_noise_is_that_of_the_engine(one_file: pathlib.Path) -> None:
    for came in open_recording(one_file).exchanges():
        assert came.noise is not None
        assert came.noise.tobytes() == NoiseSource(*NOISE_SHAPE).draw(None, came.seed).tobytes()


def test_foxglove_finds_pictures_state_chunk_and_timings(one_file: pathlib.Path) -> None:
    with one_file.open("rb") as file:
        messages: dict[str, list[Any]] = {}
        for schema, channel, message in make_reader(file).iter_messages():
            messages.setdefault(channel.topic, []).append((schema, message))
    assert set(messages) == {
        "/robot/camera/observation/image",
        "/robot/camera/observation/wrist_image",
        "/robot/observation",
        "/robot/chunk",
        "/robot/timings",
        "/vlad/exchange",
    }
    assert {len(found) for found in messages.values()} == {6}
    schema, message = messages["/robot/camera/observation/image"][3]
    assert schema.name == "foxglove.CompressedImage"
    assert schema.encoding == "jsonschema"
    content = json.loads(message.data)
    assert content.keys() == json.loads(schema.data)["properties"].keys()
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(content["data"]))))
    assert picture.shape == (224, 224, 3)
    chunk = json.loads(messages["/robot/chunk"][3][1].data)
    assert chunk["first"] == [3.0] * 7
    assert np.shape(chunk["actions"]) == (10, 7)
    assert json.loads(messages["/robot/timings"][3][1].data)["server"]["total_ms"] == 22.0
    assert len(json.loads(messages["/robot/observation"][3][1].data)["state"]) == 8


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_robot_can_be_recorded(environment: str, tmp_path: pathlib.Path) -> None:
    robot = ENVIRONMENTS[environment]
    observations = synthetic_observations(robot, 2)
    actions = np.zeros((10, robot.action_width))
    exchanges = [
        exchange(number, observation=each, actions=actions) for number, each in enumerate(observations)
    ]
    (path,) = write_recording(tmp_path, exchanges, environment=environment)
    np.testing.assert_equal(recorded_requests(path, robot, 64), observations)


def test_named_robots_have_topics_of_their_own(tmp_path: pathlib.Path) -> None:
    exchanges = [exchange(0, session="left arm"), exchange(1, session="right"), exchange(2)]
    (path,) = write_recording(tmp_path, exchanges)
    with path.open("rb") as file:
        topics = {channel.topic for _, channel, _ in make_reader(file).iter_messages()}
    assert {"/left_arm/chunk", "/right/chunk", "/robot/chunk"} <= topics


def test_compressed_images_stay_as_they_came(tmp_path: pathlib.Path) -> None:
    file = io.BytesIO()
    pixels = libero_observation()["observation/image"]
    Image.fromarray(pixels).save(file, "PNG")
    packed = {"encoding": "png", "data": file.getvalue()}
    (path,) = write_recording(
        tmp_path, [exchange(0, observation={**libero_observation(), "observation/image": packed})]
    )
    recording = open_recording(path)
    (came,) = recording.exchanges()
    assert wire.decode(came.request)["observation/image"] == packed
    np.testing.assert_array_equal(recording.observation(came)["observation/image"], pixels)


def test_a_failed_request_is_kept_with_its_reason(tmp_path: pathlib.Path) -> None:
    (path,) = write_recording(tmp_path, [exchange(0, reply=b"", error="the engine says no")])
    recording = open_recording(path)
    (came,) = recording.exchanges()
    assert came.error == "the engine says no"
    assert recording.reply(came) is None


def test_a_full_file_is_followed_by_the_next(tmp_path: pathlib.Path) -> None:
    exchanges = [exchange(number) for number in range(7)]
    files = write_recording(tmp_path, exchanges, file_bytes=1 << 20)
    assert len(files) >= 2
    numbers = [came.number for path in files for came in open_recording(path).exchanges()]
    assert numbers == list(range(7))
    assert all(path.stat().st_size < (1 << 20) + len(exchanges[0].request) * 2 for path in files)


def test_a_file_cut_at_any_byte_is_readable_up_to_there(
    one_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    whole = one_file.read_bytes()
    cut = tmp_path / "cut.mcap"
    random = np.random.default_rng(0)
    found = []
    for size in sorted({*random.integers(3000, len(whole), 120).tolist(), len(whole) - 1}):
        cut.write_bytes(whole[:size])
        numbers = [came.number for came in open_recording(cut).exchanges()]
        assert numbers == list(range(len(numbers)))
        found.append(len(numbers))
    assert found == sorted(found)
    assert set(found) == set(range(7))


def test_damage_in_the_middle_is_not_taken_for_the_end(
    one_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    data = bytearray(one_file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / "damaged.mcap"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="is damaged at byte"):
        list(open_recording(path).exchanges())


def test_other_files_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "other.mcap"
    path.write_text("not a recording at all")
    with pytest.raises(ConfigError, match="no MCAP file"):
        open_recording(path)
    with pytest.raises(ConfigError, match="cannot read"):
        open_recording(tmp_path / "missing.mcap")


def test_a_recording_of_another_robot_is_refused(one_file: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="recorded with LIBERO, not with DROID"):
        recorded_requests(one_file, ENVIRONMENTS["DROID"], 64)


def test_a_recording_serves_as_fidelity_and_calibration_set(one_file: pathlib.Path) -> None:
    robot, expected = ENVIRONMENTS["LIBERO"], [libero_observation(number) for number in range(6)]
    np.testing.assert_equal(list(recorded_observations(one_file, robot)), expected)
    opened = checkpoint("pi0")
    calibration = calibration_observations(str(one_file), make_processor(opened), opened.contract)
    np.testing.assert_equal(list(calibration), expected)


def test_a_long_recording_gives_observations_from_all_of_it(one_file: pathlib.Path) -> None:
    requests = recorded_requests(one_file, ENVIRONMENTS["LIBERO"], 3)
    np.testing.assert_equal(list(requests), [libero_observation(number) for number in (0, 2, 4)])


def test_a_frame_cut_off_by_the_death_of_its_writer_ends_the_pipe() -> None:
    parts = pipe_parts({"number": 0, "seed": 7}, b"request", b"reply")
    for size in range(len(b"".join(parts))):
        assert read_pipe(io.BytesIO(b"".join(parts)[:size])) is None


def test_a_full_disk_leaves_a_readable_file(tmp_path: pathlib.Path) -> None:
    program = (
        "from tests.support.recordings import exchange\n"
        "from vlad_server.recordings.exchange import pipe_parts\n"
        "from vlad_server.recordings.reader import open_recording\n"
        "frames = [pipe_parts({'policy': {}}, b'', b'')]\n"
        "names = ('number', 'received_ns', 'replied_ns', 'connection', 'session')\n"
        "for one in map(exchange, range(6)):\n"
        "    header = {name: getattr(one, name) for name in names}\n"
        "    frames.append(pipe_parts(header, one.request, one.reply))\n"
        "module = 'vlad_server.recordings.process'\n"
        "command = [sys.executable, '-m', module, str(folder), 'LIBERO', str(1 << 30)]\n"
        "stream = b''.join(part for frame in frames for part in frame)\n"
        "recorder = subprocess.run(command, input=stream, stdout=subprocess.PIPE)\n"
        "print(recorder.returncode, recorder.stdout.decode().strip())\n"
        "(path,) = folder.glob('*.mcap')\n"
        "print(*(came.number for came in open_recording(path).exchanges()))\n"
    )
    said, numbers = run_on_small_disk(tmp_path, "1m", program)
    assert said == "1 No space left on device"
    readable = [int(number) for number in numbers.split()]
    assert readable == list(range(len(readable)))
    assert readable
