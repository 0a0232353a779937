"""Capture files to blocks of packets: classic pcap and pcapng, plain or compressed, from a path or a pipe."""

from capture.readers.base import MAX_BLOCK_PACKETS, CaptureReader, ReadCounters
from capture.readers.compressed import MAX_DECOMPRESSED_BYTES
from capture.readers.opening import open_capture

__all__ = ["MAX_BLOCK_PACKETS", "MAX_DECOMPRESSED_BYTES", "CaptureReader", "ReadCounters", "open_capture"]
