"""What a client says in the clear before it encrypts: the server's name and the protocols it offers.

Metadata beside a flow, never model input. Sources: RFC 8446 (TLS 1.3), 6066 (server_name), 7301 (ALPN), 9001 and 9369
(QUIC v1 and v2 Initial packets).
"""

from capture.handshake.tls import Handshake
from capture.handshake.tracker import HandshakeCounters, HandshakeTracker

__all__ = ["Handshake", "HandshakeCounters", "HandshakeTracker"]
