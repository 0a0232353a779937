"""The HTTP API, asked in this process: what it answers, whom it refuses, and that nothing asked brings it down."""

from __future__ import annotations

import asyncio
import gzip
import json
import time

import httpx
import pytest

from capture.errors import UsageError
from netcls.sinks.base import Told
from netcls.store import Store
from netcls.web.app import Site, build_app
from netcls.web.guard import SECURITY_HEADERS, GuessBrake, Rules, is_loopback
from netcls.web.ring import EventRing
from netcls.web.server import split_listen
from netcls.web.upload import UploadLimits
from tests.web_appliance import SmallAppliance, event, told

TOKEN = "a-token-of-some-length"
HOME = "http://127.0.0.1:8710"


def a_site(token: str | None = None, **more) -> Site:
    store = Store()
    store.open()
    ring = EventRing(size=100, max_lag=50)
    rules = more.pop("rules", None) or Rules("127.0.0.1", token)
    return Site(more.pop("appliance", None) or SmallAppliance(), ring, store, rules, **more)


def client_of(site: Site, **more) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build_app(site), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=more.pop("base_url", HOME), **more)


def ask(site: Site, method: str, path: str, **more) -> httpx.Response:
    async def once() -> httpx.Response:
        async with client_of(site, base_url=more.pop("base_url", HOME)) as client:
            return await client.request(method, path, **more)

    return asyncio.run(once())


def test_flows_come_newest_first_and_page_by_page():
    site = a_site()
    site.store.write(told([event(number, "web" if number % 2 else "video") for number in range(1, 6)]))
    first = ask(site, "GET", "/api/v1/flows?limit=2").json()
    assert [flow["flow_id"] for flow in first["flows"]] == [5, 4]
    second = ask(site, "GET", f"/api/v1/flows?limit=2&cursor={first['next_cursor']}").json()
    assert [flow["flow_id"] for flow in second["flows"]] == [3, 2]
    only = ask(site, "GET", "/api/v1/flows?not.label=web").json()
    assert [flow["flow_id"] for flow in only["flows"]] == [4, 2]


def test_one_flow_and_one_that_is_not_there():
    site = a_site()
    site.store.write(told([event(7)]))
    assert ask(site, "GET", "/api/v1/flows/7").json()["event"]["flow_id"] == 7
    for missing in ("8", str(2**60), str(10**30)):
        assert ask(site, "GET", f"/api/v1/flows/{missing}").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/flows?lable=x",
        "/api/v1/flows?limit=0",
        "/api/v1/flows?limit=1&limit=2",
        "/api/v1/summary?window_s=x",
    ],
)
def test_a_parameter_that_cannot_be_is_refused(path):
    answer = ask(a_site(), "GET", path)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_labels_are_given_seen_and_taken_back():
    site = a_site()
    site.store.write(told([event(7)]))
    given = ask(site, "POST", "/api/v1/labels", json={"flow_id": 7, "label": "sport"})
    assert (given.status_code, given.json()["can_teach"]) == (201, False)
    assert ask(site, "GET", "/api/v1/labels").json()["labels"][0]["label"] == "sport"
    assert ask(site, "GET", "/api/v1/flows/7").json()["label"]["label"] == "sport"
    assert ask(site, "POST", "/api/v1/labels", json={"flow_id": 7, "label": None}).status_code == 200
    assert ask(site, "GET", "/api/v1/labels").json()["labels"] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"flow_id": 8, "label": "sport"}, 404),
        ({"flow_id": 7}, 400),
        ({"flow_id": "7", "label": "sport"}, 400),
        ({"flow_id": True, "label": "sport"}, 400),
        ({"flow_id": 7, "label": ""}, 400),
        ({"flow_id": 7, "label": "x" * 201}, 400),
        ({"flow_id": 7, "label": "two\nlines"}, 400),
        ({"flow_id": 7, "label": "\ud800"}, 400),
        ({"flow_id": 7, "label": "sport", "note": "\ud800"}, 400),
        ({"flow_id": 7, "label": "sport", "more": 1}, 400),
        ([], 400),
    ],
)
def test_a_label_that_cannot_be_is_refused(body, status):
    site = a_site()
    site.store.write(told([event(7)]))
    sent = {"content": json.dumps(body).encode(), "headers": {"content-type": "application/json"}}
    assert ask(site, "POST", "/api/v1/labels", **sent).status_code == status


def test_bodies_are_bounded():
    site = a_site()
    headers = {"content-type": "application/json"}
    for body in (b"[" * 70_000, b"[" * 60_000):
        assert ask(site, "POST", "/api/v1/labels", content=body, headers=headers).status_code in (400, 413)
    assert ask(site, "POST", "/api/v1/reload", content=b"x").status_code == 413
    assert ask(site, "POST", "/api/v1/labels", content=b"{}").status_code == 415


def test_reload_says_what_became_of_it():
    assert ask(a_site(), "POST", "/api/v1/reload").json() == {"reloaded": "model small, as before"}
    broken = SmallAppliance(reload_error="netcls.toml: unknown key 'ifce'")
    answer = ask(a_site(appliance=broken), "POST", "/api/v1/reload")
    assert (answer.status_code, answer.json()["error"]) == (409, "netcls.toml: unknown key 'ifce'")


def test_ready_only_while_it_classifies():
    assert ask(a_site(), "GET", "/readyz").status_code == 200
    assert ask(a_site(appliance=SmallAppliance(state="starting")), "GET", "/readyz").status_code == 503
    assert ask(a_site(), "GET", "/healthz").json() == {"status": "alive"}


def test_every_answer_has_the_security_headers():
    site = a_site(TOKEN)
    for path in ("/", "/healthz", "/api/v1/flows", "/nothing", "/login", "/static/page.css"):
        answer = ask(site, "GET", path)
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value, path


def test_a_defect_is_500_without_details():
    site = a_site(appliance=object())
    answer = ask(site, "GET", "/api/v1/status")
    assert answer.status_code == 500
    assert "Traceback" not in answer.text


# --- who may ask


def test_anything_but_health_needs_the_token_where_there_is_one():
    site = a_site(TOKEN)
    for path in (
        "/api/v1/flows",
        "/api/v1/status",
        "/metrics",
        "/openapi.json",
        "/static/page.js",
        "/api/v1/events",
    ):
        assert ask(site, "GET", path).status_code == 401, path
    for path in ("/healthz", "/readyz", "/login", "/static/page.css"):
        assert ask(site, "GET", path).status_code == 200, path
    assert ask(site, "GET", "/").headers["location"] == "/login"
    right = {"authorization": f"Bearer {TOKEN}"}
    assert ask(site, "GET", "/api/v1/flows", headers=right).status_code == 200


def test_guessing_is_slowed_and_the_right_token_has_to_wait_too():
    async def tries() -> list[int]:
        async with client_of(a_site(TOKEN)) as client:
            codes = []
            for token in ("wrong-1", "wrong-2", TOKEN):
                answer = await client.get("/api/v1/flows", headers={"authorization": f"Bearer {token}"})
                codes.append(answer.status_code)
            return codes

    assert asyncio.run(tries()) == [401, 429, 429]


def test_each_wrong_token_doubles_the_wait():
    brake = GuessBrake(first_s=100, most_s=350)
    waits = []
    for _ in range(4):
        brake.note_wrong("a")
        waits.append(round(brake.wait_s("a"), -1))
    assert waits == [100, 200, 350, 350]
    assert brake.wait_s("b") == 0
    brake.forget("a")
    assert brake.wait_s("a") == 0


def test_login_gives_a_cookie_that_stands_for_the_token():
    async def go() -> list[int]:
        async with client_of(a_site(TOKEN)) as client:
            before = await client.get("/api/v1/flows")
            done = await client.post("/login", data={"token": TOKEN})
            assert "HttpOnly" in done.headers["set-cookie"]
            assert "SameSite=strict" in done.headers["set-cookie"]
            after = await client.get("/api/v1/flows")
            client.cookies.set("netcls_session", "9999999999.00")
            forged = await client.get("/api/v1/flows", headers={"cookie": "netcls_session=9999999999.00"})
            return [before.status_code, done.status_code, after.status_code, forged.status_code]

    assert asyncio.run(go())[:3] == [401, 303, 200]
    forged = {"cookie": "netcls_session=9999999999.00"}
    assert ask(a_site(TOKEN), "GET", "/api/v1/flows", headers=forged).status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8710", "127.0.0.1.evil.example", "10.0.0.1", "", "[::2]"]
)
def test_a_foreign_host_is_refused_on_loopback(host):
    assert ask(a_site(), "GET", "/api/v1/flows", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8710", "localhost", "localhost:1", "[::1]:8710"])
def test_our_own_names_are_known(host):
    assert ask(a_site(), "GET", "/api/v1/flows", headers={"host": host}).status_code == 200


POSTS = ("/api/v1/labels", "/api/v1/classify", "/api/v1/reload", "/login")


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://127.0.0.1:8710.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_post_of_another_origin_is_refused_also_on_loopback(token, path, headers):
    right = {"authorization": f"Bearer {TOKEN}"} if token else {}
    answer = ask(a_site(token), "POST", path, headers=right | headers)
    assert answer.status_code == 403


def test_a_post_of_our_own_page_is_let_in():
    headers = {"origin": HOME, "sec-fetch-site": "same-origin"}
    assert ask(a_site(), "POST", "/api/v1/reload", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "netcls.example"])
def test_a_public_bind_without_token_is_refused(host):
    with pytest.raises(UsageError, match="no token is set"):
        Rules(host)
    assert not is_loopback(host)


def test_a_short_token_is_refused():
    with pytest.raises(UsageError, match="expected at least 16"):
        Rules("127.0.0.1", "secret")


def test_a_client_that_asks_too_much_is_slowed():
    rules = Rules("127.0.0.1", requests_per_s=1, burst=5)

    async def many() -> list[int]:
        async with client_of(a_site(rules=rules)) as client:
            return [(await client.get("/api/v1/stats")).status_code for _ in range(8)]

    codes = asyncio.run(many())
    assert codes[:5] == [200] * 5
    assert 429 in codes


@pytest.mark.parametrize(
    ("listen", "expected"),
    [("127.0.0.1:8710", ("127.0.0.1", 8710)), ("[::1]:0", ("::1", 0)), ("localhost:1", ("localhost", 1))],
)
def test_listen_addresses(listen, expected):
    assert split_listen(listen) == expected


@pytest.mark.parametrize("listen", ["", "8710", ":8710", "::1:8710", "127.0.0.1:x", "127.0.0.1:99999"])
def test_listen_addresses_that_cannot_be(listen):
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        split_listen(listen)


# --- server-sent events


def run_follower(scenario):
    return asyncio.run(scenario())


def test_a_follower_gets_what_comes_and_resumes_where_it_was():
    async def scenario():
        ring = EventRing(size=10)
        follower = ring.follow()
        ring.write(told([event(1), event(2)]))
        first = await follower.take(10)
        follower.leave()
        ring.write(told([event(3), event(4)], 3))
        again = ring.follow(ring.id_of(first[-1]))
        return [each.number for each in first], [each.number for each in await again.take(10)], again.n_missed

    assert run_follower(scenario) == ([1, 2], [3, 4], 0)


def test_what_the_ring_has_forgotten_is_said_to_be_missed():
    async def scenario():
        ring = EventRing(size=4)
        for number in range(1, 11):
            ring.write(told([event(number)], number))
        follower = ring.follow(f"{ring.boot}-3")
        return [each.number for each in await follower.take(10)], follower.n_missed

    assert run_follower(scenario) == ([7, 8, 9, 10], 3)


@pytest.mark.parametrize(
    "last_id", ["", "x", "other-3", "-", "{boot}-", "{boot}-99", "{boot}-" + "9" * 30, "{boot}-10"]
)
def test_an_id_that_is_not_ours_or_the_newest_begins_now(last_id):
    async def scenario():
        ring = EventRing(size=4)
        for number in range(1, 11):
            ring.write(told([event(number)], number))
        follower = ring.follow(last_id.format(boot=ring.boot))
        ring.write(told([event(11)], 11))
        return [each.number for each in await follower.take(10)], follower.n_missed

    assert run_follower(scenario) == ([11], 0)


def test_a_slow_follower_is_cut_and_counted_and_the_others_are_not():
    async def scenario():
        ring = EventRing(size=100, max_lag=10)
        slow, quick = ring.follow(), ring.follow()
        for number in range(1, 21):
            ring.write(told([event(number)], number))
            await quick.take(10)
        return await slow.take(10), slow.is_cut, quick.is_cut, ring.n_cut, ring.n_followers

    assert run_follower(scenario) == ([], True, False, 1, 1)


def test_followers_are_bounded(monkeypatch):
    monkeypatch.setattr("netcls.web.ring.MAX_FOLLOWERS", 2)

    async def scenario():
        site = a_site()
        site.ring.follow()
        site.ring.follow()
        async with client_of(site) as client:
            return (await client.get("/api/v1/events")).status_code

    assert asyncio.run(scenario()) == 503


def stream_of(site: Site, query: str, headers: dict[str, str], then) -> str:
    """Everything a stream says until the ring is closed behind ``then``."""

    async def scenario() -> str:
        async def write() -> None:
            while not site.ring.n_followers:
                await asyncio.sleep(0.005)
            then()
            await asyncio.sleep(0.05)
            site.ring.close()

        async with client_of(site) as client:
            writing = asyncio.create_task(write())
            answer = await asyncio.wait_for(client.get(f"/api/v1/events{query}", headers=headers), 20)
            await writing
            assert answer.headers["content-type"].startswith("text/event-stream")
            return answer.text

    return asyncio.run(scenario())


def test_the_stream_is_the_lines_with_their_ids():
    site = a_site()
    text = stream_of(site, "", {}, lambda: site.ring.write(told([event(1), event(2, "video")])))
    blocks = [block for block in text.split("\n\n") if block.startswith("id:")]
    assert [block.split("\n")[0] for block in blocks] == [f"id: {site.ring.boot}-{n}" for n in (1, 2)]
    assert json.loads(blocks[1].split("data: ", 1)[1])["netcls"]["label"] == "video"


def test_the_stream_filters_and_samples():
    site = a_site()
    events = [event(n, "web" if n % 2 else "video") for n in range(1, 41)]
    text = stream_of(site, "?not.label=web&max_per_s=5", {}, lambda: site.ring.write(told(events)))
    assert text.count("id:") == 5
    assert '"web"' not in text
    assert "event: skipped\ndata: 15" in text


def test_the_stream_resumes_by_the_header():
    site = a_site()
    site.ring.write(told([event(n) for n in range(1, 6)]))
    text = stream_of(site, "", {"last-event-id": f"{site.ring.boot}-3"}, lambda: None)
    assert [line for line in text.split("\n") if line.startswith("id:")] == [
        f"id: {site.ring.boot}-4",
        f"id: {site.ring.boot}-5",
    ]


def test_a_line_break_in_an_event_cannot_end_its_block():
    site = a_site()
    text = stream_of(site, "", {}, lambda: site.ring.write(told([event(1, sni="a\n\nevent: cut\ndata: x")])))
    assert "event: cut" not in text.split("\n")


# --- uploads


class _Model:
    path = "default"
    name = "small"


def upload(site: Site, body: bytes) -> httpx.Response:
    return ask(site, "POST", "/api/v1/classify", content=body)


def test_an_upload_that_is_no_capture_or_too_long_is_refused():
    site = a_site(appliance=SmallAppliance(checkpoint=_Model()), limits=UploadLimits(max_body_bytes=1000))
    assert upload(site, b"").status_code == 400
    assert upload(site, b"x" * 1001).status_code == 413
    assert upload(a_site(), b"x").status_code == 503


@pytest.mark.slow  # the worker compiles its kernels
def test_a_capture_is_classified_and_a_bomb_is_refused():
    from pathlib import Path

    folder = Path(__file__).resolve().parents[2] / "data" / "captures"
    limits = UploadLimits(max_unpacked_bytes=8 << 20, max_seconds=300)
    site = a_site(appliance=SmallAppliance(checkpoint=_Model()), limits=limits)

    async def both() -> tuple[httpx.Response, httpx.Response, int]:
        async with client_of(site, timeout=300) as client:
            bomb = (
                b"\xd4\xc3\xb2\xa1\x02\x00\x04\x00"
                + bytes(8)
                + b"\xff\xff\x00\x00\x01\x00\x00\x00"
                + bytes(64 << 20)
            )
            running = asyncio.create_task(client.post("/api/v1/classify", content=gzip.compress(bomb, 1)))
            await asyncio.sleep(0.2)
            busy = (await client.post("/api/v1/classify", content=b"x")).status_code
            refused = await running
            done = await client.post("/api/v1/classify", content=(folder / "demo.pcap.zst").read_bytes())
            return done, refused, busy

    done, refused, busy = asyncio.run(both())
    assert busy == 429
    assert refused.status_code == 422
    assert "/tmp" not in refused.text
    assert done.status_code == 200
    assert len(done.json()["events"]) > 10
    assert done.json()["stats"]["packets"]["imbalance"] == 0


def test_numbers_of_events_are_those_of_the_contract():
    (one,) = told([event(1)])
    assert isinstance(one, Told)
    assert one.line.endswith(b"\n")
    assert time.time() > 0
