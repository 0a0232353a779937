"""Nothing is compiled or loaded while packets come: the ring would run full meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

# In a process of its own: here, other tests have loaded the kernels.
CODE = """
import sys
import capture.kernels
from capture.decode import DecodeOptions
from capture.flow_batch import KeepSpec
from capture.flow_table import FlowTableConfig
from netcls.counters import Counters
from netcls.live_capture import CaptureLoop
from netcls.step_queue import StepQueue
from tests import encapsulations as e, frames as f, handshakes as h
from tests.packets import block_of
from tests.unit.netcls.test_live import Script


def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("capture.")]
    kernels = [item for module in modules for item in vars(module).values() if hasattr(item, "signatures")]
    return {kernel.py_func.__qualname__: len(kernel.signatures) for kernel in kernels}


def config(_n):
    return FlowTableConfig(ready_timeout_s=1.0)


inner = f.ethernet(f.ipv4(f.udp(b"inside")))
wire = [
    inner,
    f.ethernet(e.in_udp(e.vxlan(inner), 4789)),
    f.ethernet(f.ipv4(f.udp(bytes(16), length=100), fragment=0x2000)),
    f.ethernet(f.ipv4(bytes(8), fragment=3)),
    f.ethernet(f.ipv4(f.tcp(h.tls_records(h.client_hello()), dst_port=443), 6)),
    f.ethernet(f.ipv4(f.udp(h.quic_initial(h.crypto_frame(0, h.client_hello())), dst_port=443))),
]
block = block_of(wire)
block = type(block)(*(getattr(block, name).copy() for name in type(block).__slots__))
for check in (False, True):
    options = DecodeOptions(check_checksums=check)
    loop = CaptureLoop(
        [Script("test0", [])], config, KeepSpec(1, 1, 40, 8), Counters(), StepQueue(100, 100), decode_options=options
    )
    loop.warm_up()
    before = compiled()
    assert before["unwrap_rows"] == before["rebuild"] == 1
    loop._take(0, block)
    loop.tables[0]._grow_index()  # as 2,048 flows would
    after = compiled()
    print({name: n for name, n in after.items() if n != before.get(name, 0)})
    table = loop.tables[0].counters
    print(loop._counters.packets_seen, table.packets, table.flows_started, loop.handshakes[0].counters.hellos)
"""


def test_the_first_tunnel_fragment_and_handshake_on_a_wire_compile_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, books, second, _ = done.stdout.splitlines()
    assert first == second == "{}"
    assert books == "6 6 4 2"
