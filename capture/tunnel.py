"""Tunnels: the kinds netcls looks into, and the number that tells one tunnel from another.

A flow inside a tunnel is keyed by the inner five-tuple and by its *tunnel path*, 64 bits made of every tunnel on the
way in: its kind, the VLAN tags in front of it, and what names it in both directions alike.

=============== ============================================================================================
named by        kinds
=============== ============================================================================================
their id        VXLAN, VXLAN-GPE and Geneve (VNI), NVGRE (VSID), GRE with a key, ERSPAN II and III (session),
                PPPoE (session)
both endpoints  IP in IP, GRE without a key, ERSPAN I, EtherIP, MPLS in IP or UDP
both endpoints, GTP-U (TEID), L2TPv2 and v3 (session), PPTP (call): the receiver chooses the id, so the two
id one way      directions differ; a flow learns the second one from its first answer
nothing         Teredo: the inner address names the client, and answers come from other relays
=============== ============================================================================================

MPLS labels are no part of it: they name a hop of one direction and change with a reroute.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np

from capture.kernels.helper import helper

MAX_TUNNELS: Final = 4  # how many are followed into each other


class TunnelKind(IntEnum):
    """What encloses the packet of a flow; the lower-case name is what events show. Never renumber."""

    NONE = 0
    IPIP = 1  # IPv4 in IPv4 (RFC 2003)
    SIX_IN_FOUR = 2  # RFC 4213
    FOUR_IN_SIX = 3  # RFC 2473
    SIX_IN_SIX = 4  # RFC 2473
    GRE = 5  # RFC 2784, 2890; in UDP too (RFC 8086)
    NVGRE = 6  # RFC 7637
    PPTP = 7  # enhanced GRE, RFC 2637
    ERSPAN = 8  # types I, II, III (draft-foschiano-erspan)
    ETHERIP = 9  # RFC 3378
    MPLS_IN_IP = 10  # RFC 4023
    MPLS_IN_UDP = 11  # RFC 7510
    VXLAN = 12  # RFC 7348
    VXLAN_GPE = 13  # draft-ietf-nvo3-vxlan-gpe
    GENEVE = 14  # RFC 8926
    GTPU = 15  # 3GPP TS 29.281
    TEREDO = 16  # RFC 4380
    L2TP = 17  # RFC 2661
    L2TPV3 = 18  # RFC 3931
    PPPOE = 19  # RFC 2516

    @property
    def text(self) -> str:
        """As events show it."""
        return _TEXTS.get(self, self.name.lower())


_TEXTS: Final = {
    TunnelKind.SIX_IN_FOUR: "6in4",
    TunnelKind.FOUR_IN_SIX: "4in6",
    TunnelKind.SIX_IN_SIX: "6in6",
}

# Kinds whose id the receiver chose.
DIRECTIONAL: Final = (
    int(TunnelKind.PPTP),
    int(TunnelKind.GTPU),
    int(TunnelKind.L2TP),
    int(TunnelKind.L2TPV3),
)
_PPTP, _GTPU, _L2TP, _L2TPV3 = DIRECTIONAL


@helper
def is_directional(kind):  # type: ignore[no-untyped-def]
    """True if the two directions of such a tunnel have different ids."""
    return kind in (_PPTP, _GTPU, _L2TP, _L2TPV3)


# Two multipliers of SplitMix64 (Steele et al. 2014).
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


@helper
def mix(path, word):  # type: ignore[no-untyped-def]
    """The path (uint64), one word (uint64) further; different words never give one path."""
    z = (path ^ word) * _M1
    z = (z ^ (z >> np.uint64(32))) * _M2
    return z ^ (z >> np.uint64(29))
