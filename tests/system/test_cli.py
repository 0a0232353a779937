"""The installed command as a user meets it: a process, its two outputs, its exit code."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

import netcls
from netcls.cli.main import main
from tests.pcap_writer import FIN, SYN, icmp_echo, tcp, udp_flow, write_pcap

NETCLS = str(Path(sys.executable).with_name("netcls"))
ROOT = Path(__file__).parents[2]

Done = subprocess.CompletedProcess[str]


def run_netcls(*arguments: object, **kwargs: Any) -> Done:
    command = [NETCLS, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **kwargs)


def python(code: str) -> Done:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def lines(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_mistake(done: Done, *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("netcls: error: ")
    for part in parts:
        assert part in line


def wait_until_worked_off(process: subprocess.Popen[str], pipe_fd: int) -> None:
    """Until the other side has taken everything out of a pipe and all its threads sleep, ten looks in a row."""
    unread = bytearray(4)
    asleep = 0
    while asleep < 10:
        time.sleep(0.05)
        empty = not fcntl.ioctl(pipe_fd, termios.FIONREAD, unread) and not any(unread)
        stats = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/stat")]
        states = {stat.rpartition(") ")[2][0] for stat in stats}
        asleep = asleep + 1 if empty and states == {"S"} else 0


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four flows: UDP of 6 packets, UDP of 1, TCP that closes, ICMP."""
    packets = udp_flow("10.0.0.1", 4000, [10, 200, 30, 400, 50, 600])
    packets += udp_flow("10.0.0.2", 4001, [10], start_s=1_700_000_001.0)
    packets += [
        (1_700_000_002.0, tcp("10.0.0.3", 4002, "10.9.0.1", 443, SYN)),
        (1_700_000_002.1, tcp("10.9.0.1", 443, "10.0.0.3", 4002, SYN | 0x10)),
        (1_700_000_002.2, tcp("10.0.0.3", 4002, "10.9.0.1", 443, 0x18, b"hello")),
        (1_700_000_002.3, tcp("10.0.0.3", 4002, "10.9.0.1", 443, FIN | 0x10)),
        (1_700_000_002.4, tcp("10.9.0.1", 443, "10.0.0.3", 4002, FIN | 0x10)),
        (1_700_000_003.0, icmp_echo("10.0.0.4", "10.9.0.1")),
        (1_700_000_003.1, icmp_echo("10.9.0.1", "10.0.0.4", reply=True)),
    ]
    return write_pcap(tmp_path_factory.mktemp("captures") / "four.pcap", packets)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with random weights, small enough to be made here."""
    import torch

    from capture.representations import build
    from models.checkpoint import Calibration, save_checkpoint
    from models.families import family

    torch.manual_seed(0)
    settings = build("netmamba").settings() | {"payload_bytes": 0}
    netmamba = family("netmamba")
    config = netmamba.config_for(settings, d_model=16, n_layers=1)
    labels = ["web", "video", "chat"]
    saved = save_checkpoint(
        tmp_path_factory.mktemp("models") / "tiny",
        kind="classifier",
        family="netmamba",
        model_config={name: getattr(config, name) for name in config.__dataclass_fields__},
        representation="netmamba",
        representation_settings=settings,
        labels=labels,
        calibration=Calibration(),
        card={"note": "random weights"},
        state=netmamba.build_classifier(config, len(labels)).state_dict(),
    )
    return saved.path


def test_help_and_import_are_light() -> None:
    heavy = {"torch", "numba", "numpy", "rich", "pyarrow", "pandas", "polars", "sklearn"}
    tail = f"; print(sorted({heavy} & set(sys.modules)))"
    for code in (
        "import sys; from netcls.cli.main import main; main(['--help'])",
        "import sys; from netcls.cli.main import main; main(['classify', '--help'])",
        "import sys; from netcls.cli.main import main; main(['--version'])",
        "import sys; from netcls.cli.main import main; main(['models', 'list', '--json'])",
        "import sys, netcls; netcls.__version__",
    ):
        assert python(code + tail).stdout.splitlines()[-1] == "[]", code


def test_flows_need_no_torch(capture: Path) -> None:
    done = python(
        "import sys; from netcls.cli.main import main\n"
        f"code = main(['flows', {str(capture)!r}]); print(code, 'torch' in sys.modules, file=sys.stderr)"
    )
    assert done.stderr == "0 False\n"


def test_version_names_what_matters() -> None:
    done = run_netcls("--version")
    assert done.returncode == 0
    names = [line.rsplit(" ", 1)[0] for line in done.stdout.splitlines()[:3]]
    assert names == ["netcls", "torch", "numba"]
    assert done.stdout.splitlines()[3].startswith("default checkpoint ")


def test_each_flow_is_one_line_and_the_books_balance(capture: Path) -> None:
    done = run_netcls("flows", capture, "--stats")
    *flows, stats = lines(done)
    assert (done.returncode, done.stderr) == (0, "")
    ends = {
        (e["src_ip"], e["proto"]): (e["flow"]["pkts_toserver"], e["flow"]["pkts_toclient"]) for e in flows
    }
    assert ends == {
        ("10.0.0.1", "UDP"): (3, 3),
        ("10.0.0.2", "UDP"): (1, 0),
        ("10.0.0.3", "TCP"): (3, 2),
        ("10.0.0.4", "ICMP"): (1, 1),
    }
    packets = stats["stats"]["netcls"]["packets"]
    assert (packets["seen"], packets["in_flows"], packets["imbalance"]) == (14, 14, 0)
    assert stats["stats"]["netcls"]["flows"]["started"] == 4


def test_classify_labels_every_flow_the_same_from_a_file_a_pipe_and_python(
    capture: Path, checkpoint: Path, tmp_path: Path
) -> None:
    done = run_netcls("classify", capture, "-m", checkpoint, "--top", "3")
    assert (done.returncode, done.stderr) == (0, "")
    events = lines(done)
    assert len(events) == 4
    for event in events:
        ours = event["netcls"]
        assert event["event_type"] == "netcls"
        assert ours["label"] == ours["top"][0]["label"]
        assert ours["probability"] == ours["top"][0]["probability"]
        assert sum(t["probability"] for t in ours["top"]) == pytest.approx(1, abs=1e-3)
        assert (ours["model"], ours["representation"]) == ("tiny", "netmamba-1")

    # In Python, as a dict; through a pipe, compressed, as Parquet: the same flows and answers.
    assert list(netcls.classify(capture, checkpoint, top=3)) == events
    target = tmp_path / "x.parquet"
    piped = subprocess.run(
        [NETCLS, "classify", "-", "-m", checkpoint, "-f", "parquet", "-o", target],
        input=gzip.compress(capture.read_bytes()),
        capture_output=True,
        check=False,
    )
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, b"", b"")
    rows = parquet.read_table(target, columns=["flow_id", "netcls_label", "netcls_probability"]).to_pylist()
    assert rows == [
        {
            "flow_id": event["flow_id"],
            "netcls_label": event["netcls"]["label"],
            "netcls_probability": pytest.approx(event["netcls"]["probability"]),
        }
        for event in events
    ]


def test_tokens_are_what_the_model_sees(
    capture: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["tokens", str(capture), "-m", str(checkpoint)]) == 0
    shown = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [t["tokens"]["packets_used"] for t in shown if t["src_ip"] == "10.0.0.1"] == [5]
    assert {len(bytes.fromhex(t["tokens"]["bytes"])) for t in shown} == {400}
    for name in ("npz", "parquet"):
        target = str(tmp_path / name)
        assert main(["tokens", str(capture), "-m", str(checkpoint), "-f", name, "-o", target]) == 0
    with np.load(tmp_path / "npz") as arrays:
        assert arrays["bytes"].tobytes().hex() == "".join(t["tokens"]["bytes"] for t in shown)
        assert arrays["flow_id"].tolist() == [t["flow_id"] for t in shown]
    rows = parquet.read_table(tmp_path / "parquet").to_pylist()
    assert [bytes(row["bytes"]).hex() for row in rows] == [t["tokens"]["bytes"] for t in shown]
    assert [row["packets_used"] for row in rows] == [t["tokens"]["packets_used"] for t in shown]


def test_a_checkpoint_can_be_shown_and_verified(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "verify", str(checkpoint)]) == 0
    verified = capfd.readouterr().out
    assert verified.startswith("tiny: sound; classifier of family netmamba, 3 labels, checkpoint ")
    assert main(["models", "show", str(checkpoint), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["labels"], shown["checkpoint"]) == (["web", "video", "chat"], verified.split()[-1])
    assert main(["models", "show", str(checkpoint)]) == 0
    assert "random weights" in capfd.readouterr().out


def test_an_unknown_model_is_a_mistake(capture: Path) -> None:
    assert_mistake(run_netcls("classify", capture, "-m", "defualt"), "'defualt' is not known")


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    packets = [p for i in range(1500) for p in udp_flow(f"10.1.{i // 250}.{i % 250}", 1000 + i, [9])]
    capture = write_pcap(tmp_path / "many.pcap", packets)
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" flows "$1" | head -1', NETCLS, str(capture)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 1, "")
    help_done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" --help | true', NETCLS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (help_done.returncode, help_done.stderr) == (0, "")


def test_a_full_disk_is_a_mistake_and_leaves_no_file(capture: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [NETCLS, "flows", capture], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
        told = subprocess.run([NETCLS, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert_mistake(done, "cannot write standard output: No space left on device; free some space")
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 1)
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; exec "$0" flows "$1" -o "$2"', NETCLS, capture, tmp_path / "x"],
        capture_output=True,
        text=True,
        check=False,
        # The limit holds for every file, so nothing else may be written.
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert_mistake(limited, "File too large")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_capture_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "text.pcap").write_text("not a capture at all")
    (tmp_path / "empty.pcap").touch()
    assert_mistake(run_netcls("flows", tmp_path / "text.pcap"), "text.pcap", "not a capture", "6e6f7420")
    assert_mistake(run_netcls("flows", tmp_path / "empty.pcap"), "empty.pcap", "empty")
    assert_mistake(run_netcls("flows", tmp_path / "missing.pcap"), "missing.pcap", "no such file")
    (tmp_path / "folder").mkdir()
    assert_mistake(run_netcls("flows", tmp_path / "folder"), "holds no captures")


def test_a_capture_without_packets_has_no_flows(tmp_path: Path) -> None:
    done = run_netcls("flows", write_pcap(tmp_path / "none.pcap", []), "--stats")
    (stats,) = lines(done)
    assert (done.returncode, done.stderr) == (0, "")
    assert stats["stats"]["netcls"]["packets"]["seen"] == 0


def test_a_capture_that_may_not_be_read_is_a_mistake(capture: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.pcap"
    secret.write_bytes(capture.read_bytes())
    secret.chmod(0)
    # Root may read everything, unless it gives up these two capabilities.
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if drop and shutil.which("setpriv") is None:
        pytest.skip("root reads everything, and there is no setpriv to change that")
    done = subprocess.run(
        [*drop, NETCLS, "flows", secret], capture_output=True, text=True, timeout=120, check=False
    )
    assert_mistake(done, "permission denied")


def test_a_cut_off_capture_is_read_up_to_the_cut(capture: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(capture.read_bytes()[:-10])
    done = run_netcls("flows", cut, "--stats")
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("netcls: warning: ")
    assert "cut off" in warning
    *flows, stats = lines(done)
    assert sum(e["flow"]["pkts_toserver"] + e["flow"]["pkts_toclient"] for e in flows) == 13
    assert stats["stats"]["netcls"]["captures"]["cut"] == 1
    assert_mistake(run_netcls("flows", cut, "--strict", "-f", "none"), "cut off")


def test_an_absurd_record_length_is_refused_without_the_memory_it_claims(
    capture: Path, tmp_path: Path
) -> None:
    absurd = tmp_path / "absurd.pcap"
    absurd.write_bytes(capture.read_bytes() + struct.pack("<IIII", 1, 0, 0xFFFFFFF0, 0xFFFFFFF0) + b"x" * 100)
    done = subprocess.run(
        ["bash", "-c", 'ulimit -v 4000000; exec "$0" flows "$1" -f none', NETCLS, absurd],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 2)
    (line,) = done.stderr.splitlines()
    assert "4294967280" in line


def test_a_bad_capture_does_not_end_the_others(capture: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pcap").write_text("not a capture at all")
    (tmp_path / "b.pcap").write_bytes(capture.read_bytes())
    done = run_netcls("flows", tmp_path)
    assert_mistake(done, "a.pcap")
    assert len(lines(done)) == 4


def test_an_interrupt_delivers_the_flows_that_have_ended(capture: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.jsonl"
    # Long after the first flows: they are over by the packet clock when the interrupt comes.
    late = write_pcap(
        tmp_path / "late.pcap", [(1_700_001_000.0 + i, udp_flow("10.0.0.9", 9, [1])[0][1]) for i in range(9)]
    )
    process = subprocess.Popen(
        [NETCLS, "flows", "-", "-o", target],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell without job control ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.buffer.write(capture.read_bytes() + late.read_bytes()[24:])
    process.stdin.flush()
    wait_until_worked_off(process, process.stdin.fileno())
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.stderr.read() == ""
    process.stdin.close()
    process.stderr.close()
    events = [json.loads(line) for line in target.read_text().splitlines()]
    assert {"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"} <= {event["src_ip"] for event in events}
