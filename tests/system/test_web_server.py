"""The server under load and under random requests (S4)."""

from __future__ import annotations

import http.client
import logging
import socket
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from netcls.store import Store
from netcls.web.app import Site, build_app
from netcls.web.guard import Rules
from netcls.web.ring import EventRing
from netcls.web.server import start
from tests.web_appliance import SmallAppliance, event, told


def test_idle_connections_and_followers_slow_nobody():
    ring, store = EventRing(), Store()
    store.open()
    server = start(SmallAppliance(), "127.0.0.1:0", None, ring=ring, store=store)
    host, port = urlsplit(server.url).hostname, urlsplit(server.url).port
    with ExitStack() as stack:
        stack.callback(server.stop)
        for _ in range(200):
            stack.enter_context(socket.create_connection((host, port)))
        followers = []
        for _ in range(100):
            one = stack.enter_context(socket.create_connection((host, port)))
            one.sendall(f"GET /api/v1/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            followers.append(one)
        end_s = time.monotonic() + 30
        while ring.n_followers < 100 and time.monotonic() < end_s:
            time.sleep(0.02)
        assert ring.n_followers == 100
        ring.write(told([event(n) for n in range(1, 101)]))
        asked = http.client.HTTPConnection(host, port, timeout=30)
        begun_s = time.monotonic()
        asked.request("GET", "/metrics")
        answer = asked.getresponse()
        assert answer.status == 200
        assert b"netcls_followers 100.0" in answer.read()
        logging.getLogger(__name__).info(
            f"/metrics beside 200 idle connections and 100 followers: {time.monotonic() - begun_s:.3f} s"
        )
        for one in followers[1:]:  # the first is stalled: nobody reads it
            one.settimeout(30)
            seen = b""
            while b'"flow_id":100,' not in seen:
                part = one.recv(1 << 16)
                assert part
                seen = (seen + part)[-70_000:]
        assert ring.n_cut == 0
    assert not server.is_alive


@pytest.mark.slow
def test_random_requests_find_no_defect():
    import schemathesis
    from hypothesis import HealthCheck, given, settings

    store = Store()
    store.open()
    store.write(told([event(n, "web" if n % 2 else "video") for n in range(1, 50)]))
    rules = Rules("127.0.0.1", requests_per_s=1e6, burst=10**6, host_names=("testserver",))
    app = build_app(Site(SmallAppliance(), EventRing(), store, rules))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app).exclude(
        path=["/api/v1/events", "/api/v1/classify"]
    )
    n = 0

    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy())
        def one(case):
            nonlocal n
            n += 1
            answer = case.call()
            assert answer.status_code < 500 or answer.status_code == 503, answer.text
            case.validate_response(answer)

        one()
    logging.getLogger(__name__).info(f"{n} requests")
    assert n > 2000
