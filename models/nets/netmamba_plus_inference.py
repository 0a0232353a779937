"""NetMamba+'s logits as fast as this CPU gives them, by the means of :mod:`models.nets.netmamba_inference`.

Of the last block only the three class tokens are computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from models.nets import inference_kernels
from models.nets.netmamba_inference import FastEncoder, byte_embedding

if TYPE_CHECKING:
    from models.nets.netmamba_plus import NetMambaPlusClassifier


class FastNetMambaPlus(FastEncoder):
    """A frozen copy of a classifier's weights, ready to run. May be called from several threads at once.

    Args:
        model: on the CPU, float32, with ``d_state`` a multiple of 4.
        precision: of the matrix products.
    """

    @torch.no_grad()
    def __init__(self, model: NetMambaPlusClassifier, precision: str = "fp32") -> None:
        config = model.config
        super().__init__(model, config.n_tokens, config.class_tokens, precision)
        self._n_values: Final = config.n_sequence_packets
        self._first_stride: Final = config.first_stride
        self._embed_weight, bias = byte_embedding(model.byte_embed)
        # Everything of a token that no flow changes: position, modality, class token, bias.
        table = model.pos_embed[0].clone()
        table[: self._n_values + 1] += model.size_indicator[0]
        table[self._n_values + 1 : self._first_stride] += model.iat_indicator[0]
        table[self._first_stride :] += model.byte_indicator[0]
        table[self._first_stride : -1] += bias
        class_tokens = (model.size_cls_token, model.iat_cls_token, model.byte_cls_token)
        for place, token in zip(config.class_tokens, class_tokens, strict=True):
            table[place] += token[0, 0]
        self._table = table

    def features(self, flow_bytes: Tensor, sizes: Tensor, iats: Tensor) -> Tensor:
        """What the head reads.

        Args:
            flow_bytes: uint8 (F, n_bytes).
            sizes: float32 (F, n, D), of :meth:`NetMambaPlusClassifier.embedded_values`.
            iats: likewise.

        Returns:
            float32 (F, D), the sum of the class tokens.
        """

        def embed(part: slice, x: Tensor) -> None:
            inference_kernels.embed(
                flow_bytes[part].contiguous().numpy(),
                self._embed_weight.numpy(),
                self._table.numpy(),
                self._first_stride,
                x.numpy(),
            )
            x[:, : self._n_values] += sizes[part]
            x[:, self._n_values + 1 : self._first_stride - 1] += iats[part]

        return self.outputs(len(flow_bytes), embed).sum(1)
