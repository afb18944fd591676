"""Keys from files and variables: several, named, never shown, and only the right ones fit."""

from __future__ import annotations

import pathlib

import pytest

from vlad_configs.access import AccessConfig
from vlad_configs.errors import ConfigError
from vlad_server.api_keys import ApiKeys, load_keys

ONE, OTHER = "0123456789abcdef-one", "0123456789abcdef-other"


def write(folder: pathlib.Path, text: str) -> str:
    file = folder / "keys"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("scheme", ["Api-Key", "Bearer", "api-key", "BEARER"])
def test_each_key_is_known_by_its_name(tmp_path: pathlib.Path, scheme: str) -> None:
    file = write(tmp_path, f"# robots\n\nkitchen  {ONE}\n{OTHER}\n")
    keys = load_keys(AccessConfig(api_key=" from-the-variable ", api_key_file=file))
    assert len(keys) == 3
    for key, name in ((ONE, "kitchen"), (OTHER, "line 4"), ("from-the-variable", "key")):
        assert keys.name_for(f"{scheme} {key}") == name


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Api-Key",
        "Api-Key ",
        ONE,
        f"Basic {ONE}",
        f"Api-Key {ONE}x",
        f"Api-Key {ONE[:-1]}",
        "Api-Key \udcff",
        "Api-Key ä",
    ],
)
def test_nothing_else_fits(header: str) -> None:
    assert ApiKeys({"kitchen": ONE}).name_for(header) is None


def test_a_key_need_not_be_ascii() -> None:
    assert ApiKeys({"kitchen": "schlüssel"}).name_for("Api-Key schlüssel") == "kitchen"


def test_an_empty_set_admits_nobody() -> None:
    assert ApiKeys({}).name_for("Api-Key ") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("# only a comment\n", "holds no key"),
        (f"a b {ONE}\n", "line 1: expected a name and a key"),
        ("kitchen short-secret\n", "line 1: a key needs at least 16 characters"),
        (f"a {ONE}\na {OTHER}\n", "line 2: the name 'a' is taken"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused_without_showing_a_key(
    tmp_path: pathlib.Path, text: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_keys(AccessConfig(api_key_file=write(tmp_path, text)))
    assert "secret" not in str(caught.value)
    assert ONE not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the api key file .*nowhere: No such file"):
        load_keys(AccessConfig(api_key_file=str(tmp_path / "nowhere")))
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_keys(AccessConfig(api_key_file=str(tmp_path / "keys")))
