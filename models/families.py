"""The model families: what belongs together so that a name is enough to build a model. Imports no torch by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capture.errors import UsageError
from capture.representations.netfound_layout import NetFoundLayout
from capture.representations.netmamba_plus import n_size_ids
from models.nets.netfound_config import NetFoundConfig, sized
from models.nets.netmamba_config import NetMambaConfig
from models.nets.netmamba_plus_config import NetMambaPlusConfig
from models.nets.packet_mamba_config import PacketMambaConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


@dataclass(frozen=True, slots=True)
class Family:
    """A representation, a network, its pre-training objective and its config.

    Attributes:
        name: in checkpoints and on the command line.
        representation: name in the registry of :mod:`capture.representations`.
        config_type: dataclass of sizes; its fields are a checkpoint's model config.
        build_classifier: (config, number of labels) -> network from tokens to logits.
        build_pretrainer: (config) -> network from tokens to a loss.
        layer_index: (parameter name, config) -> depth, for layer-wise learning-rate decay.
        config_for: (representation settings, sizes by keyword) -> the config that fits these tokens.
        augment: (arrays of a batch, generator) -> changed copies, for training; None: the family has none.
        part_of: parameter name -> the part of the network that fine-tuning can freeze, empty for what always learns;
            None: the family has no such parts.
        fresh: prefixes of a classifier's parameters, besides its head's, that no pre-training gives.
    """

    name: str
    representation: str
    config_type: type[Any]
    build_classifier: Callable[[Any, int], nn.Module]
    build_pretrainer: Callable[[Any], nn.Module]
    layer_index: Callable[[str, Any], int]
    config_for: Callable[..., Any]
    augment: Callable[[dict[str, NDArray[Any]], np.random.Generator], dict[str, NDArray[Any]]] | None = None
    part_of: Callable[[str], str] | None = None
    fresh: tuple[str, ...] = ()


def family(name: str) -> Family:
    """The family of this name.

    Raises:
        UsageError: if there is none.
    """
    if name not in FAMILIES:
        raise UsageError(f"unknown model family {name!r}; expected one of: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def _netmamba_classifier(config: NetMambaConfig, n_labels: int) -> nn.Module:
    from models.nets.netmamba import NetMambaClassifier

    return NetMambaClassifier(config, n_labels)


def _netmamba_pretrainer(config: NetMambaConfig) -> nn.Module:
    from models.nets.netmamba import NetMambaPretrainer

    return NetMambaPretrainer(config)


def _netmamba_layer_index(name: str, config: NetMambaConfig) -> int:
    from models.nets.netmamba import layer_index

    return layer_index(name, config)


def _netmamba_config_for(settings: Mapping[str, Any], **sizes: Any) -> NetMambaConfig:
    """Bytes and stride from the representation's settings; the rest are the paper's unless given."""
    n_bytes = settings["n_packets"] * (settings["header_bytes"] + settings["payload_bytes"])
    return NetMambaConfig(n_bytes=n_bytes, stride=settings["stride"], **sizes)


def _netmamba_plus_classifier(config: NetMambaPlusConfig, n_labels: int) -> nn.Module:
    from models.nets.netmamba_plus import NetMambaPlusClassifier

    return NetMambaPlusClassifier(config, n_labels)


def _netmamba_plus_pretrainer(config: NetMambaPlusConfig) -> nn.Module:
    from models.nets.netmamba_plus import NetMambaPlusPretrainer

    return NetMambaPlusPretrainer(config)


def _netmamba_plus_layer_index(name: str, config: NetMambaPlusConfig) -> int:
    from models.nets.netmamba_plus import layer_index

    return layer_index(name, config)


def _netmamba_plus_config_for(settings: Mapping[str, Any], **sizes: Any) -> NetMambaPlusConfig:
    """What the representation decides from its settings; the rest are the paper's unless given."""
    return NetMambaPlusConfig(
        n_bytes=settings["n_packets"] * (settings["header_bytes"] + settings["payload_bytes"]),
        stride=settings["stride"],
        n_sequence_packets=settings["n_sequence_packets"],
        n_size_ids=n_size_ids(settings["signed_sizes"]),
        # The published transform's times are below 1 already.
        iat_scale=1.0 if settings["published_transform"] else 32.0,
        **sizes,
    )


def _packet_mamba_classifier(config: PacketMambaConfig, n_labels: int) -> nn.Module:
    from models.nets.packet_mamba import PacketMambaClassifier

    return PacketMambaClassifier(config, n_labels)


def _packet_mamba_pretrainer(config: PacketMambaConfig) -> nn.Module:
    from models.nets.packet_mamba import PacketMambaPretrainer

    return PacketMambaPretrainer(config)


def _packet_mamba_layer_index(name: str, config: PacketMambaConfig) -> int:
    from models.nets.packet_mamba import layer_index

    return layer_index(name, config)


def _packet_mamba_config_for(settings: Mapping[str, Any], **sizes: Any) -> PacketMambaConfig:
    """Packets and payload bytes from the representation's settings."""
    return PacketMambaConfig(
        n_packets=settings["n_packets"], payload_bytes=settings["payload_bytes"], **sizes
    )


def _augment_packets(
    arrays: dict[str, NDArray[Any]], generator: np.random.Generator
) -> dict[str, NDArray[Any]]:
    from models.learning.packet_augment import augment_packets

    return augment_packets(arrays, generator)


def _netfound_classifier(config: NetFoundConfig, n_labels: int) -> nn.Module:
    from models.nets.netfound import NetFoundClassifier

    return NetFoundClassifier(config, n_labels)


def _netfound_pretrainer(config: NetFoundConfig) -> nn.Module:
    from models.nets.netfound_pretrainer import NetFoundPretrainer

    return NetFoundPretrainer(config)


def _netfound_layer_index(name: str, config: NetFoundConfig) -> int:
    from models.nets.netfound import layer_index

    return layer_index(name, config)


def _netfound_part_of(name: str) -> str:
    from models.nets.netfound import part_of

    return part_of(name)


def _netfound_config_for(settings: Mapping[str, Any], preset: str = "tiny", **sizes: Any) -> NetFoundConfig:
    """Bursts and tokens from the representation's settings; ``preset`` names a size for all that is not given."""
    shape = NetFoundLayout(settings["n_bursts"], settings["burst_packets"])
    return sized(preset, n_bursts=shape.n_bursts, n_tokens=shape.burst_tokens, **sizes)


FAMILIES: dict[str, Family] = {
    "netfound": Family(
        name="netfound",
        representation="netfound",
        config_type=NetFoundConfig,
        build_classifier=_netfound_classifier,
        build_pretrainer=_netfound_pretrainer,
        layer_index=_netfound_layer_index,
        config_for=_netfound_config_for,
        part_of=_netfound_part_of,
        fresh=("hidden_in.", "hidden_out."),
    ),
    "netmamba": Family(
        name="netmamba",
        representation="netmamba",
        config_type=NetMambaConfig,
        build_classifier=_netmamba_classifier,
        build_pretrainer=_netmamba_pretrainer,
        layer_index=_netmamba_layer_index,
        config_for=_netmamba_config_for,
    ),
    "netmamba-plus": Family(
        name="netmamba-plus",
        representation="netmamba_plus",
        config_type=NetMambaPlusConfig,
        build_classifier=_netmamba_plus_classifier,
        build_pretrainer=_netmamba_plus_pretrainer,
        layer_index=_netmamba_plus_layer_index,
        config_for=_netmamba_plus_config_for,
    ),
    "packet-mamba": Family(
        name="packet-mamba",
        representation="packets",
        config_type=PacketMambaConfig,
        build_classifier=_packet_mamba_classifier,
        build_pretrainer=_packet_mamba_pretrainer,
        layer_index=_packet_mamba_layer_index,
        config_for=_packet_mamba_config_for,
        augment=_augment_packets,
    ),
}
