"""Every mistake in a configuration is found before anything opens, in a line that names key, got, expected, remedy."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from netcls.cli import serve as serve_module
from netcls.cli.main import main
from netcls.daemon import checks


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "_has_net_raw", lambda: True)
    # What only numpy's friends can check comes behind these two; the process of the tests keeps its privileges.
    monkeypatch.setattr(serve_module, "_open", lambda config: None)
    monkeypatch.setattr(serve_module, "_drop", lambda config: None)


def said(capsys: pytest.CaptureFixture[str], text: str, *arguments: str) -> list[str]:
    """What ``serve`` says of a file; it must refuse, and leave nothing behind."""
    Path("netcls.toml").write_text(text)
    before = sorted(Path().iterdir())
    assert main(["serve", "--config", "netcls.toml", *arguments]) == 2
    assert sorted(Path().iterdir()) == before
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("netcls: error: ") for line in lines)
    return lines


OURS = '[serve]\niface = ["lo"]\ncontrol = "none"\nlisten = "none"\n'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ifase = 'lo'", ["ifase", "did you mean 'iface'"]),
        ("idle_timeout_s = 'long'", ["--idle-timeout-s", "'long' is not a valid float", "netcls.toml"]),
        ("idle_timeout_s = -1", ["--idle-timeout-s", "-1.0", "x>0"]),
        ("queue_events = 0", ["--queue-events", "0", "x>=1"]),
        ("when_full = 'maybe'", ["--when-full", "'maybe'", "'block', 'drop_oldest', 'drop_newest'"]),
        ("emit = 'never'", ["--emit", "'never'", "'first', 'last', 'both'"]),
        ("model = 'defualt'", ["model:", "defualt"]),
        (
            "model = 'netmamba'",
            ["model:", "got 'netmamba', a backbone", "expected a classifier", "netcls finetune"],
        ),
        ("small_model = 'nothere/'", ["small_model:", "nothere"]),
        (
            "small_model = 'netmamba-lab'",
            ["small_model:", "netmamba", "expected packets-1", "same representation"],
        ),
        ("spool = '.'", ["spool:", "one of them"]),
        ("store = 'no/where.sqlite'", ["store:", "there is no folder 'no'", "mkdir"]),
        ("token_file = 'none'", ["token_file:", "cannot be read (No such file"]),
        ("output = ['floppy:disk']", ["--output 'floppy:disk'", "unknown 'floppy:'"]),
        ("output = ['file:none/x.jsonl']", ["--output 'file:none/x.jsonl'", "no folder"]),
        ("output = ['file:x?queue_events=many']", ["queue_events='many'", "whole number"]),
        ("output = ['file:x?when_full=wait']", ["when_full='wait'", "drop_oldest"]),
        ("output = ['-', '-']", ["output:", "twice"]),
        ("user = 'nobody-of-that-name'", ["user:", "expected a user of this machine"]),
        ("ring_mib = 1", ["--ring-mib", "x>=2"]),
        ("[serve.sinks]\nfile = 1", ["has no option 'sinks'"]),
    ],
)
def test_each_wrong_line_is_named(capsys: pytest.CaptureFixture[str], line: str, words: list[str]) -> None:
    lines = said(capsys, OURS + line + "\n")
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[serve]\niface = ['lo0']\nlisten='none'\ncontrol='none'", ["iface: got 'lo0'", "this machine has"]),
        ("[serve]\nlisten='none'\ncontrol='none'", ["iface: got none", "--spool DIR"]),
        ("[serve]\nspool='here'\nlisten='none'\ncontrol='none'", ["spool: got 'here'", "mkdir"]),
        ("[serve]\niface=['lo']\nlisten='0.0.0.0:8710'\ncontrol='none'", ["without a token", "--token-file"]),
        (
            "[serve]\niface=['lo']\nlisten='there'\ncontrol='none'",
            ["listen: got 'there'", "expected HOST:PORT"],
        ),
        ("[serve]\niface=['lo']\nlisten='none'\ncontrol='no/where.sock'", ["control:", "no folder 'no'"]),
        ("[serve]\niface=['lo']\nlisten='none'\ncontrol='" + "x" * 120 + "'", ["control:", "at most 107"]),
        ("[serve\n", ["is not TOML"]),
    ],
)
def test_each_wrong_file_is_named(capsys: pytest.CaptureFixture[str], text: str, words: list[str]) -> None:
    lines = said(capsys, text)
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines


def test_a_port_and_a_control_socket_that_are_taken_and_a_missing_privilege(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_has_net_raw", lambda: False)
    with socket.socket() as listener, socket.socket(socket.AF_UNIX) as control:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        control.bind("c.sock")
        control.listen()
        lines = said(capsys, f"[serve]\niface=['lo']\nlisten='127.0.0.1:{port}'\ncontrol='c.sock'")
    assert len(lines) == 3
    for line, words in zip(
        lines, ("CAP_NET_RAW", "Address already in use", "another netcls answers"), strict=True
    ):
        assert words in line


def test_all_mistakes_are_said_at_once_and_config_check_says_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "[serve]\niface=['lo0']\nmodel='none-such'\nstore='a/b'\nlisten='x'\ncontrol='none'\n"
    assert len(said(capsys, text)) == 4
    assert main(["config", "check", "netcls.toml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all("netcls.toml" in line for line in lines)
    Path("netcls.toml").write_text(OURS)
    assert main(["config", "check", "netcls.toml"]) == 0


def test_ctl_says_that_nobody_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ctl", "status", "--control", "none.sock"]) == 2
    assert "is `netcls serve` running" in capsys.readouterr().err


def test_doctor_finds_this_machine_fit_and_names_what_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    assert '"ok": true' in capfd.readouterr().out
    assert main(["doctor", "no-such-interface"]) == 2
    assert "FAIL  interface no-such-interface: no interface" in capfd.readouterr().out


def test_serve_says_its_help_without_numpy() -> None:
    code = (
        "import sys\nfrom netcls.cli.main import main\nmain(['serve', '--help'])\n"
        "assert 'numpy' not in sys.modules and 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
