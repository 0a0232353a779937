"""The page in a real browser: it loads, it lives, it filters, and nothing from the wire is ever run."""

from __future__ import annotations

import logging
import time

import pytest

from netcls.store import Store
from netcls.web.ring import EventRing
from netcls.web.server import start
from tests.browser import CHROMIUM, Browser
from tests.web_appliance import SmallAppliance, event, told

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the Debian package chromium"),
]

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>window.hit=1</script>",
    '"><svg onload=window.hit=1>',
    "javascript:window.hit=1",
    "${window.hit=1}",
    "{{constructor.constructor('window.hit=1')()}}",
    "\u202egnp.exe",
    "\x1b[31mred",
    "a\0b",
    "=cmd|' /C calc'!A0",
    "\u2028\u2029line",
]


class Live:
    """A server with its ring and store."""

    def __init__(self) -> None:
        self.ring, self.store = EventRing(), Store()
        self.store.open()
        self.n = 0
        self.server = start(SmallAppliance(), "127.0.0.1:0", None, ring=self.ring, store=self.store)

    def put(self, events: list) -> None:
        batch = told(events, self.n + 1)
        self.n += len(batch)
        self.store.write(batch)
        self.ring.write(batch)


@pytest.fixture(scope="module")
def live():
    served = Live()
    yield served
    served.server.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with_page = Browser(tmp_path_factory.mktemp("chromium"))
    yield with_page
    with_page.close()


ROWS = "[...document.querySelectorAll('tbody tr')].map(row => row.innerText)"


def test_live_events_arrive_filters_work_and_a_flow_opens(live, browser):
    live.put([event(1, "web"), event(2, "video")])
    browser.open(live.server.url)
    browser.until(f"{ROWS}.length == 2")
    browser.until(
        "document.querySelector('[role=status] .dot.good') !== null && !!document.querySelector('section .dot.good')"
    )
    live.put([event(3, "dns", src_ip="10.9.9.9")])
    browser.until(f"{ROWS}.some(row => row.includes('10.9.9.9'))")
    browser.run("document.getElementById('search').focus()")
    browser.send("Input.insertText", text="-label:dns")
    browser.press("Enter", 13, "\r")
    browser.until(f"{ROWS}.length == 2 && !{ROWS}.some(row => row.includes('dns'))")
    live.put([event(4, "dns"), event(5, "chat")])
    browser.until(f"{ROWS}.some(row => row.includes('chat'))")
    assert not browser.run(f"{ROWS}.some(row => row.includes('dns'))")
    browser.run("document.querySelector('tbody tr button').focus()")
    browser.press("Enter", 13, "\r")
    browser.until("!!document.querySelector('dialog[open] .facts')")
    browser.run("document.getElementById('right-label').focus()")
    browser.send("Input.insertText", text="sport")
    browser.press("Enter", 13, "\r")
    browser.until("document.querySelector('dialog').innerText.includes('Stored')")
    browser.press("Escape", 27)
    browser.until("!document.querySelector('dialog')")
    assert [each for each in browser.console if "404" not in each or "/api/v1/model" not in each] == []


def test_nothing_from_the_wire_is_run_and_no_other_origin_is_asked(live, browser):
    live.put(
        [event(100 + n, text, sni=text, in_iface=text, unknown=n % 2 == 0) for n, text in enumerate(HOSTILE)]
    )
    for view in ("#traffic", "#uncertain", "#health", "#upload", "#traffic?flow=100", "#traffic?flow=101"):
        browser.open("about:blank#" + view)
        browser.send("Page.navigate", url=f"{live.server.url}/{view}")
        browser.until("!!document.querySelector('main h1')")
        time.sleep(0.5)
    assert browser.run("window.hit") is None
    assert browser.dialogs == []
    assert browser.run("document.querySelectorAll('main img, main script, main svg[onload]').length") == 0
    origins = {
        "/".join(url.split("/")[:3]) for url in browser.requests if not url.startswith(("about:", "data:"))
    }
    assert origins == {live.server.url}


def test_two_thousand_events_a_second_do_not_freeze_it(live, browser):
    browser.open("about:blank#again")
    browser.send("Page.navigate", url=live.server.url)
    browser.until("!!document.querySelector('section .dot.good')")
    browser.run(
        "window.worst = 0; window.last = performance.now(); window.beat = setInterval(() => {"
        "const now = performance.now(); window.worst = Math.max(window.worst, now - window.last);"
        "window.last = now}, 50); 0"
    )
    begun_s, first = time.monotonic(), live.n
    for second in range(5):
        for part in range(10):
            live.put(
                [event(10_000 + second * 2000 + part * 200 + n, sni=f"n{n}.example") for n in range(200)]
            )
            time.sleep(max(begun_s + second + (part + 1) / 10 - time.monotonic(), 0))
    rate = (live.n - first) / (time.monotonic() - begun_s)
    browser.until(f"{ROWS}.some(row => row.includes('example'))")
    worst_ms = browser.run("window.worst")
    logging.getLogger(__name__).info(f"{rate:.0f} events/s, longest pause of the page {worst_ms:.0f} ms")
    assert worst_ms < 5000
    assert browser.run("document.querySelectorAll('tbody tr').length") <= 200
    assert live.ring.n_cut == 0
