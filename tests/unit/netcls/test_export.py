"""`netcls export --onnx`: onnxruntime gives the answers of netcls, for any number of flows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.checkpoint import load_checkpoint
from models.predictor import Predictor
from netcls.cli.main import main
from tests.unit.models.test_early_exit import random_tokens, saved


@pytest.mark.parametrize("n_flows", [1, 40])
def test_onnxruntime_gives_equal_answers(tmp_path_factory, n_flows):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path_factory.getbasetemp() / "default.onnx"
    if not path.exists():
        assert main(["export", "--onnx", str(path), "--quiet"]) == 0
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    checkpoint, tokens = load_checkpoint("default"), random_tokens(n_flows)
    tokens.arrays["numbers"][0, 0] = [2**31 - 1, 0, 7, 2**20, 65535]
    with Predictor(checkpoint, threads=1, device="cpu", precision="fp32") as predictor:
        expected_logits, expected = predictor.logits(tokens), predictor.predict(tokens).probabilities
    logits, probabilities = session.run(["logits", "probabilities"], tokens.arrays)
    assert expected_logits.std() > 0.5
    np.testing.assert_allclose(logits, expected_logits, atol=2e-5 * np.abs(expected_logits).max())
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), expected.argmax(axis=1))
    props = session.get_modelmeta().custom_metadata_map
    assert json.loads(props["netcls.labels"]) == checkpoint.labels
    assert props["netcls.checkpoint"] == checkpoint.digest


def test_what_cannot_be_exported_is_one_line_and_leaves_no_file(tmp_path, capsys):
    pytest.importorskip("onnx")
    other = str(saved(tmp_path / "netmamba", name="netmamba").path)
    assert main(["export", "--onnx", str(tmp_path / "a.onnx"), "--model", other]) == 2
    said = capsys.readouterr().err
    assert "expected a packet-mamba that answers classes" in said
    assert said.count("\n") == 1
    assert main(["export", "--onnx", str(tmp_path / "none" / "a.onnx")]) == 2
    assert "expected a file in a folder that exists" in capsys.readouterr().err
    assert list(tmp_path.glob("*.onnx")) == []
