"""Flag beats environment beats file beats default; a key that nobody knows is an error."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from capture.errors import UsageError
from netcls.cli.main import main
from netcls.config import read_config

TREE = {"classify": ["model", "idle_timeout_s", "threads"], "models": {"list": ["json"]}}


def config_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "netcls.toml"
    path.write_text(text)
    return str(path)


def test_tables_are_commands_and_keys_above_them_hold_for_every_command(tmp_path: Path) -> None:
    path = config_of(tmp_path, "threads = 2\n[classify]\nidle-timeout-s = 60\n[models.list]\njson = true\n")
    assert read_config(path, TREE) == {
        "classify": {"threads": 2, "idle_timeout_s": 60},
        "models": {"list": {"json": True}},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thread = 1", r"no command has an option 'thread'; did you mean 'threads'\?"),
        ("[clasify]", r"there is no command 'clasify'; did you mean 'classify'\?"),
        (
            "[classify]\nidle_timeout = 1",
            r"\[classify\] has no option 'idle_timeout'; did you mean 'idle_timeout_s'\?",
        ),
        ("[models.lst]", r"there is no command 'models.lst'; did you mean 'list'\?"),
        ("[classify.model]\nx = 1", r"\[classify.model\] is a table; expected a value for 'model'"),
        ("[models]\nlist = 1", r"'models.list' is a value; expected a table \[models.list\]"),
        ("threads = ", r"is not TOML: "),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_config(config_of(tmp_path, text), TREE)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"cannot read the configuration file '.*': No such file or directory"
    ):
        read_config(str(tmp_path / "no.toml"), TREE)


def shown(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["config", "show", "classify", "--json", *arguments]) == 0
    values: dict[str, Any] = json.loads(capfd.readouterr().out)["classify"]
    return values


def test_environment_beats_file_beats_default(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_of(tmp_path, "[classify]\nidle_timeout_s = 60\nactive_timeout_s = 90")
    monkeypatch.setenv("NETCLS_CLASSIFY_IDLE_TIMEOUT_S", "30")
    values = shown(capfd, "--config", path)
    assert values["idle_timeout_s"] == {"value": 30.0, "origin": "environment"}
    assert values["active_timeout_s"] == {"value": 90.0, "origin": "file"}
    assert values["tcp_linger_s"] == {"value": 5.0, "origin": "default"}


def test_the_file_can_be_named_before_the_command_or_by_the_environment(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_of(tmp_path, "threads = 2")
    assert main(["--config", path, "config", "show", "classify", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["classify"]["threads"] == {"value": 2, "origin": "file"}
    monkeypatch.setenv("NETCLS_CONFIG", path)
    assert shown(capfd)["threads"] == {"value": 2, "origin": "file"}


def test_what_is_shown_is_a_file_that_can_be_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--origin"]) == 0
    text = capfd.readouterr().out
    assert tomllib.loads(text)["classify"]["model"] == "default"
    path = config_of(tmp_path, text)
    assert main(["config", "check", path]) == 0
    assert capfd.readouterr().out == f"{path}: can be used\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[classify]\nthreads = 'x'", "Invalid value for '--threads': 'x' is not a valid integer"),
        ("[classify]\nformat = 'xml'", "Invalid value for '--format'"),
        ("[classify]\nthreds = 1", "[classify] has no option 'threds'; did you mean 'threads'?"),
    ],
)
def test_check_refuses_what_the_command_would_refuse(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = config_of(tmp_path, text)
    for arguments in (["config", "check", path], ["classify", "x.pcap", "--config", path]):
        assert main(arguments) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("netcls: error: ")
        assert message in line
        assert path in line


def test_a_misspelt_variable_of_the_environment_is_an_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETCLS_CLASSIFY_IDLE_TIMEOUT", "30")
    assert main(["classify", "x.pcap"]) == 2
    assert capfd.readouterr().err == (
        "netcls: error: environment variable NETCLS_CLASSIFY_IDLE_TIMEOUT is no option of netcls classify; "
        "did you mean 'NETCLS_CLASSIFY_IDLE_TIMEOUT_S'?\n"
    )


def test_a_bad_variable_of_the_environment_is_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETCLS_CLASSIFY_THREADS", "many")
    assert main(["classify", "x.pcap"]) == 2
    assert "(from NETCLS_CLASSIFY_THREADS)" in capfd.readouterr().err
