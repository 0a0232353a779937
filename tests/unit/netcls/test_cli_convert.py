"""``netcls convert``: what it prints, and that a bad file is one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from netcls.cli.main import main
from tests.unit.models import published_netmamba as published

Capfd = pytest.CaptureFixture[str]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(published.state(n_classes=2), tmp_path / "x.safetensors")
    (tmp_path / "labels.txt").write_text("web\nvideo\n")
    return tmp_path / "x.safetensors"


def test_a_conversion_and_its_way_back_say_what_went_where(
    capfd: Capfd, source: Path, tmp_path: Path
) -> None:
    out, labels = str(tmp_path / "mine"), str(tmp_path / "labels.txt")
    arguments = ["convert", "netmamba", str(source), "--out", out, "--labels", labels, "--licence", "MIT"]
    assert main([*arguments, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["kind"], said["labels"], said["missing"], said["dropped"]) == (
        "classifier",
        ["web", "video"],
        [],
        [],
    )
    assert {row["name"]: tuple(row["shape"]) for row in said["mapped"]} == published.shapes(2)
    assert said["parameters"] == sum(torch.Size(shape).numel() for shape in published.shapes(2).values())
    assert said["representation"]["settings"]["field_policy"] == "paper"

    assert main(arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["from", "to", "shape", "dtype"]
    assert "head.weight" in " ".join(lines)
    assert lines[-1] == f"{out}: classifier {said['checkpoint']} of 27 tensors, none missing"

    back = tmp_path / "back.safetensors"
    assert main(["convert", "to-published", out, "--out", str(back)]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == f"{back}: 27 tensors of mine, {said['checkpoint']}"
    given = published.state(n_classes=2)
    assert all(torch.equal(tensor, given[name]) for name, tensor in load_file(back).items())

    assert main(["convert", "to-published", out, "--out", str(back), "--mixer", "blocks.1", "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert sorted(said["tensors"]) == sorted(load_file(back))
    assert len(said["tensors"]) == 9


def test_a_bad_source_is_one_line_and_leaves_nothing(capfd: Capfd, source: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no weights")
    for given in (source, tmp_path / "text"):
        assert main(["convert", "netmamba", str(given), "--out", str(tmp_path / "mine")]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith(f"netcls: error: {given}: got ")
        assert err.count("\n") == 1
    assert main(["convert", "to-published", str(tmp_path), "--out", str(tmp_path / "y.pth")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.txt", "text", "x.safetensors"]


def test_a_shipped_model_goes_out_and_comes_back_the_same(capfd: Capfd, tmp_path: Path) -> None:
    from models.checkpoint import load_checkpoint

    shipped = load_checkpoint("netmamba")
    out = str(tmp_path / "netmamba.safetensors")
    assert main(["convert", "to-published", "netmamba", "--out", out]) == 0
    sizes = ["--n-packets", "16", "--header-bytes", "56", "--field-policy", "leak_free", "--mark-direction"]
    assert main(["convert", "netmamba", out, "--out", str(tmp_path / "back"), *sizes]) == 0
    back = load_checkpoint(tmp_path / "back")
    assert back.state.keys() == shipped.state.keys()
    assert all(torch.equal(back.state[name], tensor) for name, tensor in shipped.state.items())
    assert back.representation_settings == shipped.representation_settings
    assert shipped.model_config.items() <= back.model_config.items()
