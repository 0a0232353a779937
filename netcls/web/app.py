"""The HTTP API: routes over the ring, the store and the appliance.

Everything that is read from the store is read in a thread, so that a slow query delays nobody else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from capture.errors import NetclsError, UsageError
from netcls.store import FlowFilter, Store
from netcls.store.reading import MAX_PAGE, flow_page, labels, one_flow, summary
from netcls.store.schema import StoreError
from netcls.store.store import SlowQueryError
from netcls.web.body import body_of
from netcls.web.guard import SESSION_COOKIE, SESSION_S, Guard, Rules, peer_of
from netcls.web.openapi import description
from netcls.web.ring import EventRing
from netcls.web.sse import event_stream
from netcls.web.upload import UploadLimits, Uploads

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from netcls.web.appliance import ApplianceLike

_LOG: Final = logging.getLogger(__name__)

STATIC: Final = Path(__file__).parent / "static"
MAX_LABEL_CHARS: Final = 200
MAX_NOTE_CHARS: Final = 1000
_MAX_JSON_BYTES: Final = 64 << 10
_MAX_FORM_BYTES: Final = 4 << 10
_MAX_FLOW_ID: Final = 2**53
_WINDOWS_S: Final = (60, 30 * 86_400)


@dataclass(slots=True)
class Site:
    """What the routes share.

    Attributes:
        appliance: the daemon.
        ring: newest events.
        store: history; in memory where the operator wants no file.
        rules: who may ask.
        limits: of uploads.
    """

    appliance: ApplianceLike
    ring: EventRing
    store: Store
    rules: Rules
    limits: UploadLimits = field(default_factory=UploadLimits)


def build_app(site: Site) -> Guard:
    """The ASGI application."""
    api = _Api(site)
    routes = [
        Route("/", api.page),
        Route("/login", api.login_page, methods=["GET"]),
        Route("/login", api.login, methods=["POST"]),
        Route("/api/v1/flows", api.flows),
        Route("/api/v1/flows/{flow_id:int}", api.flow),
        Route("/api/v1/events", api.events),
        Route("/api/v1/summary", api.summary),
        Route("/api/v1/model", api.model),
        Route("/api/v1/status", api.status),
        Route("/api/v1/stats", api.stats),
        Route("/api/v1/labels", api.labels, methods=["GET"]),
        Route("/api/v1/labels", api.put_label, methods=["POST"]),
        Route("/api/v1/classify", api.classify, methods=["POST"]),
        Route("/api/v1/reload", api.reload, methods=["POST"]),
        Route("/healthz", api.healthz),
        Route("/readyz", api.readyz),
        Route("/metrics", api.metrics),
        Route("/openapi.json", api.openapi),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    errors: dict[Any, Any] = {
        HTTPException: _http_error,
        UsageError: _operator_error,
        StoreError: _store_error,
        ClientDisconnect: _gone,
        Exception: _defect,
    }
    app = Starlette(routes=routes, exception_handlers=errors)
    return Guard(app, site.rules)


def error(status: int, text: str, **headers: str) -> JSONResponse:
    """An error as every route says it."""
    return JSONResponse(
        {"error": text}, status, {name.replace("_", "-"): value for name, value in headers.items()}
    )


async def _http_error(_request: Request, failure: Exception) -> Response:
    assert isinstance(failure, HTTPException)
    return JSONResponse({"error": failure.detail}, failure.status_code, failure.headers)


async def _operator_error(_request: Request, failure: Exception) -> Response:
    return error(400, str(failure))


async def _store_error(_request: Request, failure: Exception) -> Response:
    return error(503, str(failure), retry_after="1" if isinstance(failure, SlowQueryError) else "5")


async def _gone(_request: Request, _failure: Exception) -> Response:
    return Response(status_code=400)


async def _defect(_request: Request, failure: Exception) -> Response:
    _LOG.error("a defect of netcls while answering a request", exc_info=failure)
    return error(500, "a defect of netcls; its log says more")


class _Api:
    """The routes; each says in INTERFACE and docs what it gives."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._uploads = Uploads(site.limits)
        self._registry: Any = None

    # --- page

    async def page(self, _request: Request) -> Response:
        return Response((STATIC / "index.html").read_bytes(), media_type="text/html; charset=utf-8")

    async def login_page(self, _request: Request) -> Response:
        return Response((STATIC / "login.html").read_bytes(), media_type="text/html; charset=utf-8")

    async def login(self, request: Request) -> Response:
        """A form with the token, for a cookie that stands for it."""
        if (
            request.headers.get("content-type", "").partition(";")[0].strip()
            != "application/x-www-form-urlencoded"
        ):
            return error(415, "expected a form (application/x-www-form-urlencoded) with the field token")
        from urllib.parse import parse_qs

        try:
            fields = parse_qs((await body_of(request, _MAX_FORM_BYTES)).decode(), max_num_fields=4)
        except ValueError:
            return error(400, "the form cannot be read; expected the field token")
        guard: Guard = request.scope["netcls.guard"]
        if guard.rules.token is not None:
            refusal = guard.check_token(fields.get("token", [""])[0], peer_of(request.scope))
            if refusal is not None and refusal[0] == 429:
                return error(429, refusal[1], **refusal[2])
            if refusal is not None:
                return RedirectResponse("/login?wrong", 303)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            SESSION_COOKIE,
            guard.new_session(),
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    # --- flows

    async def flows(self, request: Request) -> Response:
        pairs = request.query_params.multi_items()
        limit = _whole(pairs, "limit", 100, 1, MAX_PAGE)
        cursor = _whole(pairs, "cursor", 0, 1, 2**62) or None
        asked = FlowFilter.of_query((name, value) for name, value in pairs if name not in ("limit", "cursor"))
        page = await run_in_threadpool(flow_page, self._site.store, asked, limit, cursor)
        cursor_text = b"null" if page.next_cursor is None else str(page.next_cursor).encode()
        body = b'{"flows": [' + b",".join(page.lines) + b'], "next_cursor": ' + cursor_text + b"}"
        return Response(body, media_type="application/json")

    async def flow(self, request: Request) -> Response:
        _no_parameters(request)
        flow_id = request.path_params["flow_id"]
        found = (
            await run_in_threadpool(one_flow, self._site.store, flow_id) if flow_id < _MAX_FLOW_ID else None
        )
        if found is None:
            return error(
                404, f"flow {str(flow_id)[:20]} is not in the store; it may have been forgotten since"
            )
        return JSONResponse(found)

    async def events(self, request: Request) -> Response:
        pairs = request.query_params.multi_items()
        max_per_s = _whole(pairs, "max_per_s", 0, 1, 100_000) or None
        asked = FlowFilter.of_query((name, value) for name, value in pairs if name != "max_per_s")
        return event_stream(request, self._site.ring, asked, max_per_s)

    async def summary(self, request: Request) -> Response:
        pairs = request.query_params.multi_items()
        _only(pairs, "window_s", "top")
        window_s = _whole(pairs, "window_s", 900, *_WINDOWS_S)
        top = _whole(pairs, "top", 10, 1, 100)
        return JSONResponse(await run_in_threadpool(summary, self._site.store, window_s, top))

    # --- the appliance

    async def model(self, request: Request) -> Response:
        _no_parameters(request)
        checkpoint = self._site.appliance.checkpoint
        if checkpoint is None:
            return error(404, "no model is loaded; netcls serves flow records only")
        return JSONResponse(
            {
                "name": checkpoint.name,
                "checkpoint": checkpoint.digest,
                "family": checkpoint.family,
                "representation": f"{checkpoint.representation}-{checkpoint.representation_version}",
                "labels": list(checkpoint.labels),
                "unknown_threshold": checkpoint.calibration.unknown_threshold,
                "card": _finite(checkpoint.card),
            }
        )

    async def status(self, request: Request) -> Response:
        _no_parameters(request)
        status = await run_in_threadpool(self._site.appliance.status)
        ring, store = self._site.ring, self._site.store
        web = {
            "events_in_ring": len(ring),
            "followers": ring.n_followers,
            "followers_cut": ring.n_cut,
            "store": {**store.counters, "bytes": await run_in_threadpool(store.size_bytes)},
            "warnings": store.warnings[-20:],
        }
        return JSONResponse(_finite({**status, "web": web}))

    async def stats(self, request: Request) -> Response:
        _no_parameters(request)
        books = self._site.appliance.counters
        return JSONResponse(_finite({"capture": books.capture(), "netcls": books.as_dict()}))

    async def reload(self, request: Request) -> Response:
        _no_parameters(request)
        await body_of(request, 0)
        try:
            said = await run_in_threadpool(self._site.appliance.reload)
        except NetclsError as failure:
            return error(409, str(failure))
        return JSONResponse({"reloaded": said})

    async def healthz(self, request: Request) -> Response:
        _no_parameters(request)
        return JSONResponse({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        _no_parameters(request)
        state = str((await run_in_threadpool(self._site.appliance.status)).get("state", ""))
        is_ready = state in ("running", "overloaded")
        return JSONResponse({"ready": is_ready, "state": state}, 200 if is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        from netcls.metrics import CONTENT_TYPE, exposition, registry_of

        _no_parameters(request)
        if self._registry is None:
            self._registry = registry_of(self._site.appliance, self._own_metrics)
        body = await run_in_threadpool(exposition, self._registry)
        return Response(body, headers={"content-type": CONTENT_TYPE})

    def _own_metrics(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        ring, store = self._site.ring, self._site.store
        yield GaugeMetricFamily("netcls_followers", "Clients that follow the events.", value=ring.n_followers)
        yield CounterMetricFamily("netcls_followers_cut", "Clients that were too slow.", value=ring.n_cut)
        yield GaugeMetricFamily("netcls_store_bytes", "Size of the store.", value=store.size_bytes())
        yield CounterMetricFamily(
            "netcls_store_flows_expired",
            "Flows that the store forgot.",
            value=store.counters["flows_expired"],
        )
        yield GaugeMetricFamily("netcls_labels_given", "Labels of operators.", value=store.counters["labels"])

    async def openapi(self, request: Request) -> Response:
        _no_parameters(request)
        return JSONResponse(description(has_token=self._site.rules.token is not None))

    # --- what an operator gives

    async def labels(self, request: Request) -> Response:
        pairs = request.query_params.multi_items()
        _only(pairs, "limit")
        limit = _whole(pairs, "limit", MAX_PAGE, 1, MAX_PAGE)
        return JSONResponse({"labels": await run_in_threadpool(labels, self._site.store, limit)})

    async def put_label(self, request: Request) -> Response:
        _no_parameters(request)
        _need_json(request)
        flow_id, label, note = _label_of(await body_of(request, _MAX_JSON_BYTES))
        store = self._site.store
        if label is None:
            await run_in_threadpool(store.remove_label, flow_id)
            return JSONResponse({"flow_id": flow_id, "label": None, "can_teach": False})
        try:
            can_teach = await run_in_threadpool(store.put_label, flow_id, label, note)
        except KeyError:
            return error(404, f"flow {flow_id} is not in the store; it may have been forgotten since")
        _LOG.info("flow %d was labelled %r", flow_id, label)
        return JSONResponse({"flow_id": flow_id, "label": label, "can_teach": can_teach}, 201)

    async def classify(self, request: Request) -> Response:
        _no_parameters(request)
        checkpoint = self._site.appliance.checkpoint
        return await self._uploads.classify(request, checkpoint)


def _label_of(body: bytes) -> tuple[int, str | None, str]:
    expected = 'expected {"flow_id": 123, "label": "video", "note": "why"}, or "label": null to take it back'
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, f"the body is not JSON; {expected}") from None
    if (
        not isinstance(given, dict)
        or not given.keys() <= {"flow_id", "label", "note"}
        or "label" not in given
    ):
        raise HTTPException(400, expected)
    flow_id, label, note = given.get("flow_id"), given["label"], given.get("note", "")
    if isinstance(flow_id, float) and flow_id.is_integer():
        flow_id = int(flow_id)  # to JSON, 7.0 is 7
    if type(flow_id) is not int or not 0 <= flow_id < _MAX_FLOW_ID:
        raise HTTPException(400, f"flow_id is no flow's number; {expected}")
    if label is not None and (
        not isinstance(label, str)
        or not label.strip()
        or len(label) > MAX_LABEL_CHARS
        or not label.isprintable()
        or label != label.strip()
    ):
        raise HTTPException(
            400, f"label: expected 1 to {MAX_LABEL_CHARS} printable characters, none blank at its ends"
        )
    if not isinstance(note, str) or len(note) > MAX_NOTE_CHARS or not _is_text(note):
        raise HTTPException(400, f"note: expected at most {MAX_NOTE_CHARS} characters of valid Unicode")
    return flow_id, label, note


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _need_json(request: Request) -> None:
    # A form of another site cannot send this type without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected content-type application/json")


def _whole(pairs: list[tuple[str, str]], name: str, default: int, least: int, most: int) -> int:
    given = [value for known, value in pairs if known == name]
    if not given:
        return default
    value = given[0]
    is_number = value.isascii() and value.isdigit() and len(value) < 20
    if len(given) > 1 or not is_number or not least <= int(value) <= most:
        raise UsageError(f"{name} is {value[:40]!r}; expected one whole number from {least} to {most}")
    return int(value)


def _only(pairs: list[tuple[str, str]], *names: str) -> None:
    from capture.errors import did_you_mean

    for name, _ in pairs:
        if name not in names:
            raise UsageError(f"there is no parameter {name[:64]!r}{did_you_mean(name[:64], names)}")


def _no_parameters(request: Request) -> None:
    _only(request.query_params.multi_items())


def _finite(value: Any) -> Any:
    """The value without NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not -1e308 < value < 1e308:
        return None
    return value
