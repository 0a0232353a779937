"""packet-mamba's classifier as an ONNX graph: the loop over packets unrolled, standard operators only, any batch size.

Everything that a runtime computes another way is avoided: buckets come from comparisons with whole numbers, not from a
logarithm whose last bit decides.

F flows, K packets (the representation's), D width, E inner width, N states, C classes.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from capture.errors import UsageError
from capture.kernels.packet_tokens import DIRECTION, N_FLAGS, N_NUMBERS, N_SHOWN
from models.checkpoint_verify import build_config, known_family
from models.nets.packet_inference import bucket_thresholds
from models.nets.rms_norm import EPS

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.nets.mamba import MambaBlock
    from models.nets.packet_mamba import PacketMambaClassifier

OPSET: Final = 18
MAX_STEPS: Final = 1024  # packets x blocks; each is a dozen nodes


class _PlainClassifier(nn.Module):
    """The same network in elementary operations, without kernels and without branches on values."""

    def __init__(self, model: PacketMambaClassifier, temperature: float) -> None:
        from models.nets.packet_mamba import _SCALES

        super().__init__()
        self.model = model
        self.temperature = temperature
        thresholds = torch.from_numpy(bucket_thresholds()).clamp(max=2**31 - 1).int()
        # What no number reaches is told apart from the largest number by a mask.
        self.register_buffer("thresholds", thresholds)
        self.register_buffer("reached", torch.from_numpy(bucket_thresholds() < 2**31))
        self.register_buffer("scales", torch.tensor(_SCALES))
        self.thresholds: Tensor
        self.reached: Tensor
        self.scales: Tensor

    def forward(self, numbers: Tensor, flags: Tensor, payload: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and calibrated probabilities after each flow's last packet, float32 (F, C) both."""
        x = self._embed(numbers, flags.long(), payload.long())
        for block in self.model.blocks:
            x = x + _mixed(block, _normed(x, block.norm.weight))  # type: ignore[arg-type, union-attr]
        last = ((flags[..., DIRECTION].long() > 0).long().sum(1) - 1).clamp(min=0)
        chosen = x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        logits = self.model.head(_normed(chosen, self.model.norm_f.weight))
        return logits, torch.softmax(logits / self.temperature, dim=-1)

    def _embed(self, numbers: Tensor, flags: Tensor, payload: Tensor) -> Tensor:
        layer = self.model.embed
        over = (numbers[..., None] >= self.thresholds) & self.reached
        index = torch.cat([over.long().sum(-1) - 1, flags[..., :N_SHOWN]], dim=-1) + layer.starts
        x = layer.fields(index).sum(-2)
        x = x + layer.scalars(torch.log(numbers.float() + 1) / self.scales)
        if layer.payload_bytes:
            shown = torch.arange(layer.payload_bytes) < flags[..., N_SHOWN, None]
            x = x + layer.payload(layer.bytes((payload + 1) * shown.long()).flatten(-2))
        return _normed(x, layer.norm.weight)


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def _mixed(block: MambaBlock, tokens: Tensor) -> Tensor:
    """The mixer of a block, (F, K, D) to the same: one step of the scan after the other."""
    mixer = block.mixer
    x, z = mixer.in_proj(tokens).split(mixer.d_inner, dim=-1)
    n_packets, n_taps = tokens.shape[1], mixer.d_conv
    padded = functional.pad(x, (0, 0, n_taps - 1, 0))
    weight = mixer.conv1d.weight[:, 0]
    u = mixer.conv_bias + sum(padded[:, k : k + n_packets] * weight[:, k] for k in range(n_taps))
    u = functional.silu(u)
    low_rank, B, C = mixer.x_proj(u).split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
    dt = functional.softplus(mixer.dt_proj(low_rank))
    decay = torch.exp(dt[..., None] * -torch.exp(mixer.A_log))
    new = (dt * u)[..., None] * B[:, :, None, :]
    h, outputs = new[:, 0], []
    for k in range(n_packets):
        if k:
            h = decay[:, k] * h + new[:, k]
        outputs.append((h * C[:, k, None, :]).sum(-1))
    y = torch.stack(outputs, dim=1) + mixer.D * u
    mixed: Tensor = mixer.out_proj(y * functional.silu(z))
    return mixed


def onnx_bytes(checkpoint: Checkpoint) -> bytes:
    """The checkpoint's classifier as the bytes of an ONNX file.

    Inputs ``numbers`` int32 (F, K, 5), ``flags`` uint8 (F, K, 10), ``payload`` uint8 (F, K, P), as
    :class:`capture.representations.packets.PacketsRepresentation` makes them; outputs ``logits`` and ``probabilities``,
    float32 (F, C). Labels, checkpoint and representation stand in the metadata.

    Raises:
        UsageError: for another family or task, for too many packets, or without the package onnx.
    """
    try:
        import onnx
    except ImportError:
        raise UsageError("--onnx needs the package onnx; pip install 'netcls[onnx]'") from None
    if checkpoint.family != "packet-mamba" or checkpoint.task.kind != "class" or not checkpoint.labels:
        raise UsageError(
            f"--onnx: got {checkpoint.path} of family {checkpoint.family!r} ({checkpoint.kind}, "
            f"{checkpoint.task.kind}), expected a packet-mamba that answers classes"
        )
    where = str(checkpoint.path / "config.json")
    family = known_family(checkpoint.family, where)
    config = build_config(family, checkpoint.model_config, where)
    n_packets = checkpoint.representation_settings["n_packets"]
    if n_packets * config.n_layers > MAX_STEPS:
        raise UsageError(
            f"--onnx: got {n_packets} packets and {config.n_layers} blocks, expected at most {MAX_STEPS} steps in all"
        )
    model = family.build_classifier(config, len(checkpoint.labels))
    model.load_state_dict(checkpoint.state, strict=True)
    plain = _PlainClassifier(model, checkpoint.calibration.temperature).eval().requires_grad_(False)  # type: ignore[arg-type]
    example = (
        torch.zeros(2, n_packets, N_NUMBERS, dtype=torch.int32),
        torch.zeros(2, n_packets, N_FLAGS, dtype=torch.uint8),
        torch.zeros(2, n_packets, config.payload_bytes, dtype=torch.uint8),
    )
    names = ["numbers", "flags", "payload", "logits", "probabilities"]
    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            plain,
            example,
            written,  # type: ignore[arg-type]
            input_names=names[:3],
            output_names=names[3:],
            dynamic_axes={name: {0: "flows"} for name in names},
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx.load_from_string(written.getvalue())
    onnx.helper.set_model_props(graph, _metadata(checkpoint))
    onnx.checker.check_model(graph)
    data: bytes = graph.SerializeToString()
    return data


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    import json

    return {
        "netcls.labels": json.dumps(checkpoint.labels),
        "netcls.checkpoint": checkpoint.digest,
        "netcls.model": checkpoint.name,
        "netcls.representation": checkpoint.representation_id,
        "netcls.representation_settings": json.dumps(checkpoint.representation_settings),
    }
