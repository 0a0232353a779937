"""Weights of the published NetMamba come in and go out bit for bit; a hostile file is an error and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from capture.errors import CheckpointError, UsageError
from models.checkpoint import load_checkpoint
from models.convert import source as source_module
from models.convert.netmamba import Converted, check_published, from_published, mixer_state, to_published
from models.convert.save import read_labels, save_converted, write_weights
from models.convert.source import Source, read_source
from models.convert.torch_child import Refused, read_tensors
from models.families import FAMILIES
from models.nets.mamba import MambaMixer
from models.nets.netmamba import random_masking
from models.predictor import Predictor
from tests.reference import mamba as mamba_twin
from tests.reference import netmamba as twin
from tests.unit.models import published_netmamba as published
from tests.unit.models.test_checkpoint import Canary
from tests.unit.models.test_netmamba import some_bytes

Changes = Callable[[dict[str, Tensor]], dict[str, Any]]


def source_of(tensors: dict[str, Tensor], dropped: list[dict[str, str]] | None = None) -> Source:
    return Source(Path("x.pth"), "0" * 64, 1, tensors, dropped or [])


def in_float64(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Read as a user's file is, in the limited process."""
    return read_source(
        published.write(tmp_path_factory.mktemp("published") / "pre-train.pth", published.state())
    )


def test_a_published_file_is_read_without_optimiser_and_command_line(pretrained: Source) -> None:
    given = published.state()
    assert pretrained.tensors.keys() == given.keys()
    assert all(torch.equal(pretrained.tensors[name], tensor) for name, tensor in given.items())
    assert pretrained.dropped == [
        {"name": "optimizer", "what": "dict"},
        {"name": "epoch", "what": "int"},
        {"name": "scaler", "what": "dict"},
        {"name": "args", "what": "argparse.Namespace"},
    ]


def test_a_converted_backbone_predicts_and_loses_what_the_float64_twin_does(pretrained: Source) -> None:
    converted = from_published(pretrained)
    config = converted.config
    assert (converted.kind, config.n_bytes, config.stride, config.d_model) == ("backbone", 400, 4, 24)
    assert (config.n_layers, config.d_state, config.d_conv, config.expand) == (2, 4, 4, 2)
    assert (config.decoder_d_model, config.decoder_layers) == (16, 1)
    model = FAMILIES["netmamba"].build_pretrainer(config).eval()
    model.load_state_dict(converted.state)
    flows = some_bytes(3, config.n_bytes)
    loss, predicted, _ = model(flows, torch.Generator().manual_seed(5))
    kept, _ = random_masking(3, config.n_strides, config.n_kept, torch.Generator().manual_seed(5), "cpu")
    expected, expected_loss = twin.masked_prediction(
        flows.numpy(), in_float64(published.state()), kept.numpy()
    )
    np.testing.assert_allclose(predicted.detach().numpy(), expected, atol=3e-5)
    assert float(loss.detach()) == pytest.approx(expected_loss, rel=1e-5)


def test_a_converted_classifier_answers_what_the_float64_twin_does(tmp_path: Path) -> None:
    given = published.state(n_classes=3)
    source = source_of({f"module.{name}": tensor for name, tensor in given.items()})  # torch's data parallel
    converted = from_published(source, n_labels=3)
    saved = save_converted(converted, source, tmp_path / "mine", ["web", "video", "mail"], None)
    flows = some_bytes(4, published.N_BYTES)
    expected = twin.logits(flows.numpy(), in_float64(given))
    assert expected.std() > 0.3
    from capture.representations.base import TokenBatch

    tokens = TokenBatch({"bytes": flows.numpy()}, np.full(4, 5, np.uint16))
    with Predictor(load_checkpoint(tmp_path / "mine"), threads=1, device="cpu") as predictor:
        np.testing.assert_allclose(predictor.logits(tokens), expected, atol=3e-5)
    assert saved.labels == ["web", "video", "mail"]
    assert saved.representation_settings["field_policy"] == "paper"
    assert saved.representation_settings["payload_bytes"] == 0
    assert saved.card["licence"].startswith("unknown")
    assert "not calibrated" in " ".join(saved.card["known_limits"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_way_there_and_back_changes_no_bit(pretrained: Source, tmp_path: Path, suffix: str) -> None:
    converted = from_published(pretrained)
    saved = save_converted(converted, pretrained, tmp_path / "mine", [], "MIT")
    assert saved.card["licence"] == "MIT"
    target = tmp_path / f"back{suffix}"
    write_weights(to_published(saved.state), target, wrapped=True)
    back = load_file(target) if suffix == ".safetensors" else torch.load(target, weights_only=True)["model"]
    given = published.state()
    assert back.keys() == given.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in given.items())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_one_mixer_goes_to_mamba_ssm_under_its_names(pretrained: Source) -> None:
    given = published.state()
    state = mixer_state(from_published(pretrained).state, "decoder_blocks.0")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes == {  # mamba_ssm 2.2, Mamba(d_model=16, d_state=4, d_conv=4, expand=2)
        "A_log": (32, 4),
        "D": (32,),
        "in_proj.weight": (64, 16),
        "conv1d.weight": (32, 1, 4),
        "conv1d.bias": (32,),
        "x_proj.weight": (9, 32),
        "dt_proj.weight": (32, 1),
        "dt_proj.bias": (32,),
        "out_proj.weight": (16, 32),
    }
    mixer = MambaMixer(16, d_state=4)
    mixer.load_state_dict(state)
    tokens = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    twin_weights = mamba_twin.under(in_float64(given), "decoder_blocks.0.mixer.")
    expected = mamba_twin.mixer(tokens.double().numpy(), twin_weights)
    np.testing.assert_allclose(mixer(tokens).detach().numpy(), expected, atol=1e-5)
    with pytest.raises(
        UsageError, match=r"got 'blocks\.7', expected one of blocks\.0, blocks\.1, decoder_blocks\.0"
    ):
        mixer_state(given, "blocks.7")


def test_half_precision_widens_without_a_change() -> None:
    given = {name: tensor.bfloat16() for name, tensor in published.state().items()}
    converted = from_published(source_of(given))
    assert {mapped.dtype for mapped in converted.mapped} == {"bfloat16"}
    assert all(torch.equal(converted.state[name].bfloat16(), tensor) for name, tensor in given.items())


def test_a_fine_tuned_file_that_kept_its_decoder_is_a_classifier_without_it() -> None:
    both = published.state() | published.state(n_classes=2)
    converted = from_published(source_of(both, [{"name": "epoch", "what": "int"}]), n_labels=2)
    assert converted.kind == "classifier"
    assert converted.state.keys() == published.shapes(2).keys()
    left = {entry["name"] for entry in converted.dropped}
    assert left == {"epoch"} | (published.shapes().keys() - published.shapes(2).keys())


def without(name: str) -> Changes:
    return lambda state: {key: value for key, value in state.items() if key != name}


RESNET = {
    "conv1.weight": torch.zeros(64, 3, 7, 7),
    "bn1.weight": torch.zeros(64),
    "fc.weight": torch.zeros(9, 4),
}

DAMAGES: list[tuple[Changes, str]] = [
    (without("norm_f.weight"), r"got 1 \('norm_f\.weight'\) missing and no unknown tensors, expected the 42"),
    (without("mask_token"), "got an encoder alone, expected one with a decoder"),
    (without("blocks.0.mixer.conv1d.weight"), r"got no tensor 'blocks\.0\.mixer\.conv1d\.weight'"),
    (without("cls_token"), "expected those of a published NetMamba"),
    (lambda s: s | {"extra.weight": torch.zeros(2)}, r"no missing and 1 \('extra\.weight'\) unknown"),
    (lambda s: s | {"blocks.5.norm.weight": torch.zeros(24)}, r"got 10 \('blocks\.2\."),
    (lambda s: s | {"blocks.0.mixer.A_b_log": torch.zeros(48, 4)}, "A_b_log"),  # bidirectional Mamba
    (
        lambda s: s | {"blocks.1.mixer.D": torch.zeros(47)},
        r"blocks\.1\.mixer\.D': got shape \[47\], expected \[48\]",
    ),
    (lambda s: s | {"cls_token": torch.zeros(24)}, r"'cls_token': got shape \[24\], expected 3 axes"),
    (lambda s: s | {"cls_token": torch.zeros(1, 1, 0)}, "expected 3 axes of 1 or more"),
    (lambda s: s | {"pos_embed": torch.zeros(1, 1, 24)}, "n_bytes is 0; expected a whole number"),
    (
        lambda s: s | {"blocks.0.mixer.A_log": torch.zeros(40, 4)},
        r"A_log': got shape \[40, 4\], expected \[24, 4\]",
    ),
    (
        lambda s: s | {f"blocks.{i}.x": torch.zeros(1) for i in range(300)},
        "n_layers = 300, expected at most 256",
    ),
    (lambda s: s | {"norm_f.weight": torch.full((24,), torch.nan)}, "'norm_f.weight': got NaN or infinity"),
    (lambda s: s | {"norm_f.weight": torch.full((24,), torch.inf)}, "got NaN or infinity, expected finite"),
    (lambda s: s | {"norm_f.weight": torch.ones(24).double()}, "got dtype float64, expected float32"),
    (lambda s: s | {"norm_f.weight": torch.ones(24, dtype=torch.int64)}, "got dtype int64"),
    (
        lambda s: RESNET,
        r"got 3 tensors \('conv1\.weight', .*expected those of a published NetMamba .*another model",
    ),
]


@pytest.mark.parametrize(("change", "message"), DAMAGES, ids=range(len(DAMAGES)))
def test_tensors_that_are_no_netmamba_are_refused_by_name(change: Changes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        from_published(source_of(change(published.state())))
    assert str(error.value).startswith("x.pth: ")


@pytest.mark.parametrize(
    ("n_classes", "options", "message"),
    [
        (None, {"n_labels": 3}, "got names for a backbone, which has no head"),
        (4, {}, "got a head of 4 classes without names, expected --labels FILE"),
        (4, {"n_labels": 3}, r"got 3 names, expected 4 as the head of x\.pth has rows"),
        (None, {"n_packets": 7}, "expected sizes that fit the 400 bytes that the weights read"),
        (None, {"header_bytes": 81}, "got 5 packets of 81 header bytes and more"),
        (None, {"field_policy": "all"}, "all"),
    ],
)
def test_what_the_operator_says_must_fit_the_weights(
    n_classes: int | None, options: dict[str, Any], message: str
) -> None:
    from capture.errors import NetclsError

    with pytest.raises(NetclsError, match=message):
        from_published(source_of(published.state(n_classes)), **options)


def test_header_and_payload_share_what_the_weights_read() -> None:
    settings = from_published(source_of(published.state()), n_packets=10, header_bytes=28).settings
    assert (settings["n_packets"], settings["header_bytes"], settings["payload_bytes"]) == (10, 28, 12)


def test_only_netmamba_has_published_names() -> None:
    check_published("netmamba", {"bidirectional": False, "positions": True, "d_model": 8}, "x")
    check_published("netmamba", {"d_model": 8}, "x")
    check_published("netmamba-plus", {"d_model": 8}, "x")
    with pytest.raises(
        CheckpointError, match="x: got family 'tiny', expected one of netmamba, netmamba-plus"
    ):
        check_published("tiny", {}, "x")


@pytest.mark.parametrize("change", [{"bidirectional": True}, {"positions": False}])
def test_an_ablation_of_netmamba_has_no_published_form(change: dict[str, bool]) -> None:
    with pytest.raises(CheckpointError, match=r"x: got a NetMamba with .*; the published code has no other"):
        check_published("netmamba", change, "x")


def archive(pickled: bytes, storage: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save with another pickle or storage in it."""
    made, file = BytesIO(), BytesIO()
    torch.save({"a": torch.arange(4.0)}, made)
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            data = {"archive/data.pkl": pickled, "archive/data/0": storage}.get(name, old.read(name))
            new.writestr(name, data)
    return file.getvalue()


def pickle_of_four_floats() -> bytes:
    made = BytesIO()
    torch.save({"a": torch.arange(4.0)}, made)
    with zipfile.ZipFile(made) as file:
        return file.read("archive/data.pkl")


class HugeBytes:
    """A pickle of a few bytes that asks for a tebibyte; torch's reader allows ``bytearray``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (1 << 40,)


def test_code_in_a_pickle_is_named_and_never_run(tmp_path: Path) -> None:
    torch.save({"model": published.state(), "args": Canary(tmp_path / "canary")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: it names posix\.mkdir; nothing but tensors"):
        read_source(tmp_path / "evil.pth")
    assert not (tmp_path / "canary").exists()


def test_a_pickle_that_asks_for_a_tebibyte_meets_the_limit(tmp_path: Path) -> None:
    torch.save({"model": HugeBytes()}, tmp_path / "huge.pth")
    with pytest.raises(CheckpointError, match=r"huge\.pth: .*(memory|bytearray|signal)"):
        read_source(tmp_path / "huge.pth")


HOSTILE: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda p: torch.save({"a": torch.zeros(1).expand(1 << 40)}, p),
        "claim 4398046511104 bytes, the file has",
    ),
    (
        lambda p: p.write_bytes(
            archive(pickle_of_four_floats().replace(b"K\x04", b"J\0\0\0\x10"), bytes(16))
        ),
        "torch cannot read it",  # a storage of 2^28 items in a record of 4
    ),
    (
        lambda p: p.write_bytes(archive(pickle_of_four_floats(), bytes(1 << 24), zipfile.ZIP_DEFLATED)),
        "got a compressed archive, expected one that torch.save wrote",
    ),
    (lambda p: p.write_bytes(archive(b"\x80\x02garbage", b"")), "torch cannot read it"),
    (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(99)), "got an archive that cannot be read"),
    (lambda p: torch.save([torch.zeros(1)], p), "got an object of type list, expected a state dict"),
    (lambda p: torch.save({"model": {}}, p), "got no tensor, expected a state dict"),
    (lambda p: torch.save({"a": "text"}, p), "got str as 'a', expected a tensor"),
    (lambda p: torch.save({3: torch.zeros(1)}, p), "got a tensor called '3', expected a name"),
    (lambda p: torch.save({"n" * 201: torch.zeros(1)}, p), "expected a name of 1 to 200 characters"),
    (lambda p: torch.save({"a": torch.eye(3).to_sparse()}, p), "got a sparse, quantised or empty kind"),
    (lambda p: torch.save({"a": torch.empty(3, device="meta")}, p), "got a sparse, quantised or empty kind"),
]


@pytest.mark.parametrize(("write", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_file_that_lies_is_refused(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / "x.pth")
    with pytest.raises(Refused, match=message):
        read_tensors(tmp_path / "x.pth")


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = published.write(tmp_path / "whole.pth", published.state()).read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(Refused, match="cut off or damaged"):
            read_tensors(tmp_path / "cut.pth")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with nothing, expected a file of torch.save or safetensors"),
        (b"these are no weights\n", "got a file that begins with 746865736520617265"),
        (b"\x80\x04\x95abc", "got a bare pickle, which is never loaded"),
        (b"\x08\0\0\0\0\0\0\0{}      x", "got 1 bytes of tensor data, expected 0"),
    ],
)
def test_what_is_no_file_of_weights_never_reaches_torch(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_source(tmp_path / "x")


def test_a_folder_a_missing_file_and_one_too_large_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got a folder, expected a file of weights"):
        read_source(tmp_path)
    with pytest.raises(CheckpointError, match=r"none: cannot be read \(No such file"):
        read_source(tmp_path / "none")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate((4 << 30) + 1)
    with pytest.raises(CheckpointError, match="got 4294967297 bytes, expected at most 4294967296"):
        read_source(tmp_path / "sparse")


def test_safetensors_are_read_without_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "_CHILD", None)
    save_file(published.state(), tmp_path / "x.safetensors")
    source = read_source(tmp_path / "x.safetensors")
    assert from_published(source).state.keys() == published.shapes().keys()
    assert source.dropped == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended with signal 11"),
        ("import sys; sys.exit('no luck')", r"ended with exit code 1 \(no luck\)"),
        ("import time; time.sleep(60)", "reading it took more than 0.3 s"),
        ("pass", "ended with exit code 0"),
    ],
)
def test_a_process_that_dies_or_hangs_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setattr(source_module, "_CHILD", tmp_path / "child.py")
    if "sleep" in code:
        monkeypatch.setattr(source_module, "WALL_S", 0.3)
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04" + bytes(9))
    with pytest.raises(CheckpointError, match=message):
        read_source(tmp_path / "x.pth")


def test_a_conversion_killed_while_it_saves_leaves_nothing_and_the_next_one_works(
    pretrained: Source, tmp_path: Path
) -> None:
    code = (
        "import os, sys, models.atomic_write as a\n"
        "a._swap = lambda *names: os.kill(os.getpid(), 9)\n"
        "from netcls.cli.main import main\n"
        "sys.exit(main(['convert', 'netmamba', sys.argv[1], '--out', sys.argv[2]]))"
    )
    save_file(published.state(), tmp_path / "x.safetensors")
    command = [sys.executable, "-c", code, str(tmp_path / "x.safetensors"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "out").exists()
    converted: Converted = from_published(pretrained)
    save_converted(converted, pretrained, tmp_path / "out", [], None)
    assert load_checkpoint(tmp_path / "out").kind == "backbone"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"web\nvideo\n\n", ["web", "video"]),
        (b'["a b", "\xc3\xa9"]', ["a b", "é"]),
        (b"\xef\xbb\xbfa\r\nb", ["a", "b"]),
    ],
)
def test_label_names_come_from_lines_or_json(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    (tmp_path / "labels").write_bytes(data)
    assert read_labels(tmp_path / "labels") == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got 0 labels"),
        (b"a\na", "got label 'a' twice"),
        (b"a\n\nb", "got a label of 0 characters"),
        (b"\xff", "no UTF-8"),
        (b"[1]", "not all strings"),
        (b"a\x1b[31m", "control characters"),
    ],
)
def test_unusable_label_names_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "labels").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_labels(tmp_path / "labels")


def test_weights_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UsageError, match=r"got 'x\.bin', expected a name that ends in \.pth, \.pt or \.safetensors"
    ):
        write_weights(published.state(), tmp_path / "x.bin", wrapped=True)
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_weights(published.state(), tmp_path / "no" / "x.pth", wrapped=True)
    (tmp_path / "x.pth").write_text("before")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_weights(published.state(), tmp_path / "x.pth", wrapped=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.pth", "before")]
