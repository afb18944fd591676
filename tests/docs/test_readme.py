"""README.md and its neighbours: the options exist, the commands parse, the links lead somewhere."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import subprocess

import pytest

from tests.support.daemon import ROOT
from vlad_configs.serving import ServeConfig
from vlad_server import cli

README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def _option_table() -> dict[str, str]:
    section = README.split("## Command line")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `((?:[^`|]|\\\|)+)` \|((?:[^|\\]|\\\|)*)\|", section, re.MULTILINE)
    return {name: default.strip() for name, default in rows}


def test_the_option_table_is_complete_and_invents_nothing() -> None:
    documented = {name.split()[0] for name in _option_table() if name.startswith("--")}
    options = {
        f"--{field.name.replace('_', '-')}"
        for field in dataclasses.fields(cli.Args)
        if field.name != "policy"
    }
    assert documented == options


def test_documented_defaults_are_the_real_ones() -> None:
    table = {name.split()[0]: default.strip("`") for name, default in _option_table().items()}
    config = ServeConfig(environment="LIBERO", checkpoint="demo")
    assert table["--host"] == config.host
    assert table["--port"] == str(config.port)
    assert table["--metrics-port"] == str(config.metrics_port)
    assert table["--backend"] == config.backend
    assert table["--max-message-bytes"] == f"{config.max_message_bytes >> 20} MiB"
    assert table["--drain-seconds"] == f"{config.drain_s:.0f}"
    assert table["--api-key"] == cli.API_KEY_VARIABLE


def test_serve_policy_commands_of_the_readme_parse() -> None:
    lines = re.findall(r"^\$ (?:\S*/)?serve_policy (.+)$", README, re.MULTILINE)
    server_args = re.findall(r'SERVER_ARGS="([^"]+)"', README)
    assert len(lines) >= 2
    assert server_args
    for line in [*lines, *server_args]:
        assert cli.parse(line.split()).env is cli.EnvMode.LIBERO


def test_make_targets_that_the_pages_name_exist() -> None:
    named = set(re.findall(r"^\$ make (\w+)|`make (\w+)`", "\n".join(page.read_text() for page in PAGES)))
    for target in {first or second for first, second in named}:
        result = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"make {target}: {result.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: pathlib.Path) -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
