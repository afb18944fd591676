"""The command line: openpi's commands parse, ours too, mistakes end in one line."""

from __future__ import annotations

import itertools
import pathlib
import subprocess
import sys

import pytest

from tests.support.daemon import start_daemon
from vlad_configs.errors import ConfigError
from vlad_server import cli


@pytest.mark.parametrize(
    "line",
    [
        "--env=LIBERO --port=8000 policy:checkpoint --policy.config=pi05_libero --policy.dir=ckpt",
        "--env LIBERO --port 8000 policy:checkpoint --policy.config pi05_libero --policy.dir ckpt",
        "policy:checkpoint --policy.config=pi05_libero --policy.dir=ckpt --env LIBERO --port 8000",
        "--policy.dir ckpt --policy.config pi05_libero --env LIBERO --port 8000 policy:checkpoint",
    ],
)
def test_openpi_command_lines_parse_in_every_order(line: str) -> None:
    args = cli.parse(line.split())
    assert args.env is cli.EnvMode.LIBERO
    assert args.port == 8000
    assert args.policy == cli.Checkpoint(config="pi05_libero", dir="ckpt")


def test_dashes_and_underscores_are_the_same() -> None:
    for spelling in ("--default_prompt", "--default-prompt"):
        assert cli.parse([spelling, "fold the towel"]).default_prompt == "fold the towel"
    assert cli.parse(["--default-prompt", "None"]).default_prompt is None


@pytest.mark.parametrize("rest", [[], ["--port", "1"], ["policy:default"]])
def test_record_alone_is_openpis_switch(rest: list[str]) -> None:
    assert cli.parse(["--record", *rest]).record == cli.RECORD_DIRECTORY
    assert cli.parse(["--record", "runs", *rest]).record == "runs"
    assert cli.parse(["--record=runs", *rest]).record == "runs"
    assert cli.parse(rest).record is None
    assert cli.parse(["--no-record", *rest]).record is None


@pytest.mark.parametrize(
    "line", ["--env libero", "--backend cuda", "--port many", "--frobnicate 3", "policy:checkpoint"]
)
def test_mistakes_end_with_exit_code_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.parse(line.split())
    assert caught.value.code == 2
    assert capsys.readouterr().err


def test_all_backends_can_be_named() -> None:
    for backend in ("pytorch", "triton", "triton_pipelined", "tensorrt", "tensorrt_pipelined"):
        assert cli.parse(["--backend", backend]).backend == backend


def test_api_key_comes_from_the_environment_unless_given() -> None:
    variables = {cli.API_KEY_VARIABLE: "from the environment"}
    args = cli.parse(["--checkpoint", "demo"])
    assert cli.serve_config(args, variables).access.api_key == "from the environment"
    args = cli.parse(["--checkpoint", "demo", "--api-key", "given"])
    assert cli.serve_config(args, variables).access.api_key == "given"


def test_devices_are_numbers_of_gpus_or_names() -> None:
    args = cli.parse(["--checkpoint", "demo", "--devices", "0, 2,cpu"])
    config = cli.serve_config(args, {})
    assert config.worker_devices == ("cuda:0", "cuda:2", "cpu")
    assert [config.policy_options(device)["device"] for device in config.worker_devices] == [
        *("cuda:0", "cuda:2", "cpu")
    ]
    args = cli.parse(["--checkpoint", "demo", "--device", "cuda:1"])
    assert cli.serve_config(args, {}).worker_devices == ("cuda:1",)


def test_a_request_alone_is_always_possible() -> None:
    args = cli.parse(["--checkpoint", "demo", "--batch-sizes", "4, 2"])
    assert cli.serve_config(args, {}).policy_options(None)["batch_sizes"] == [1, 2, 4]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--devices 0,,1", "with commas in between"),
        ("--devices 0,1 --device cpu", "contradict each other"),
        ("--batch-sizes 1,x", "numbers with commas in between"),
        ("--batch-sizes 1,99", "must lie in 1..16, not 1, 99"),
        ("--max-waiting 0", "--max-waiting must be at least 1, not 0"),
        ("--session-seconds -1", "--session-seconds must not be negative"),
    ],
)
def test_options_that_cannot_work_are_refused_in_plain_words(line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cli.serve_config(cli.parse(["--checkpoint", "demo", *line.split()]), {})


def test_help_needs_no_torch() -> None:
    program = (
        "import sys; sys.argv = ['serve_policy', '--help']\n"
        "from vlad_server import cli\n"
        "try: cli.main()\n"
        "finally: sys.exit(int(any(name in sys.modules for name in ('torch', 'tensorrt', 'safetensors'))))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for flag in ("--env", "--backend", "--checkpoint", "--num-steps", "--metrics-port", "policy:checkpoint"):
        assert flag in result.stdout


def test_nothing_to_serve_ends_in_plain_words(tmp_path: pathlib.Path) -> None:
    with start_daemon("--env", "LIBERO", env={"OPENPI_DATA_HOME": str(tmp_path)}, listening=False) as daemon:
        assert daemon.process.wait(20) == 2
        assert "three ways to go on" in daemon.log()
        assert "Traceback" not in daemon.log()


def test_options_after_the_subcommand_reach_their_place() -> None:
    options = [
        ["--env", "DROID"],
        ["--port=9"],
        ["--policy.dir", "d"],
        ["--policy.config=pi05_droid"],
        ["policy:checkpoint"],
    ]
    for order in itertools.permutations(options):
        args = cli.parse([word for option in order for word in option])
        assert (args.port, args.policy) == (9, cli.Checkpoint("pi05_droid", "d"))
