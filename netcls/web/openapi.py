"""The API described as OpenAPI 3.1, for clients that are generated and for tests that try everything."""

from __future__ import annotations

from typing import Any, Final

import netcls
from netcls.store.reading import MAX_PAGE

_TEXT: Final = {"type": "string", "minLength": 1, "maxLength": 256}
_EVENT: Final = {
    "type": "object",
    "description": "One flow, in the shape of Suricata's EVE",
    "required": [
        "timestamp",
        "flow_id",
        "event_type",
        "src_ip",
        "dest_ip",
        "proto",
        "community_id",
        "flow",
        "netcls",
    ],
    "properties": {
        "timestamp": {"type": "string"},
        "flow_id": {"type": "integer"},
        "event_type": {"enum": ["netcls", "flow"]},
        "src_ip": {"type": "string"},
        "dest_ip": {"type": "string"},
        "proto": {"type": "string"},
        "community_id": {"type": "string"},
        "flow": {"type": "object"},
        "netcls": {"type": "object"},
    },
}
_ERROR: Final = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def description(*, has_token: bool) -> dict[str, Any]:
    """The document that ``/openapi.json`` gives.

    Args:
        has_token: whether this server asks for one.
    """
    paths: dict[str, Any] = {
        "/api/v1/flows": {
            "get": _get("Newest flows first", _flow_list(), [*_page_parameters(), *_filters()], 400, 503)
        },
        "/api/v1/flows/{flow_id}": {
            "get": _get(
                "One flow: its answers, its first packets, its label",
                _one_flow(),
                [_flow_id()],
                400,
                404,
                503,
            )
        },
        "/api/v1/events": {"get": _events()},
        "/api/v1/summary": {
            "get": _get(
                "Flows and bytes per label over time, top talkers",
                _object("step_s", "times", "labels", "talkers"),
                [_number("window_s", 60, 2_592_000, "seconds back"), _number("top", 1, 100, "talkers")],
                400,
                503,
            )
        },
        "/api/v1/model": {
            "get": _get("The model that answers, with its card", _object("name", "card"), [], 400, 404)
        },
        "/api/v1/status": {"get": _get("State, queues, sinks, losses", _object("web"), [], 400)},
        "/api/v1/stats": {"get": _get("The books", _object("capture", "netcls"), [], 400)},
        "/api/v1/labels": {
            "get": _get(
                "Labels that operators gave",
                _object("labels"),
                [_number("limit", 1, MAX_PAGE, "labels")],
                400,
                503,
            ),
            "post": _post_label(),
        },
        "/api/v1/classify": {"post": _post_capture()},
        "/api/v1/reload": {
            "post": {
                "summary": "Read configuration and model again",
                "responses": _answers(200, _object("reloaded"), 400, 403, 409, 413),
            }
        },
        "/healthz": {"get": _get("Alive", _object("status"), [], 400)},
        "/readyz": {
            "get": {
                "summary": "Ready to classify",
                "responses": _answers(200, _object("ready", "state"), 400)
                | _answers(503, _object("ready", "state")),
            }
        },
        "/metrics": {
            "get": {
                "summary": "Prometheus metrics",
                "responses": {"200": {"description": "Text format 0.0.4", "content": {"text/plain": {}}}}
                | _answers(None, {}, 400),
            }
        },
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "netcls",
            "version": netcls.__version__,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {"schemas": {"Event": _EVENT, "Error": _ERROR}},
    }
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        for path, methods in paths.items():
            for method in methods.values():
                if path in ("/healthz", "/readyz"):
                    method["security"] = []
                else:
                    method["responses"] |= _answers(None, {}, 401)
    for methods in paths.values():
        for method in methods.values():
            method["responses"] |= _answers(None, {}, 429)
    return document


def _get(
    summary: str, schema: dict[str, Any], parameters: list[dict[str, Any]], *errors: int
) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": _answers(200, schema, *errors)}
    if parameters:
        operation["parameters"] = parameters
    return operation


def _answers(status: int | None, schema: dict[str, Any], *errors: int) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    if status is not None:
        answers[str(status)] = {"description": "Answer", "content": {"application/json": {"schema": schema}}}
    for code in errors:
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        answers[str(code)] = {"description": "Refused; the text says why", "content": content}
    return answers


def _object(*required: str) -> dict[str, Any]:
    return {"type": "object", "required": list(required)}


def _flow_list() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["flows", "next_cursor"],
        "properties": {
            "flows": {"type": "array", "items": {"$ref": "#/components/schemas/Event"}},
            "next_cursor": {"type": ["integer", "null"]},
        },
    }


def _one_flow() -> dict[str, Any]:
    events = {"type": "array", "items": {"$ref": "#/components/schemas/Event"}}
    return {
        "type": "object",
        "required": ["event", "earlier", "packets", "label", "can_teach"],
        "properties": {"event": {"$ref": "#/components/schemas/Event"}, "earlier": events},
    }


def _number(name: str, least: int, most: int, text: str) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _flow_id() -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 0, "maximum": 2**53 - 1}
    return {"name": "flow_id", "in": "path", "required": True, "schema": schema}


def _page_parameters() -> list[dict[str, Any]]:
    return [
        _number("limit", 1, MAX_PAGE, "flows of a page"),
        _number("cursor", 1, 2**62, "next_cursor of the page before"),
    ]


def _filters() -> list[dict[str, Any]]:
    """Values of one name mean OR, names AND, ``not.`` none of them."""
    port = {"type": "integer", "minimum": 0, "maximum": 65535}
    address: dict[str, Any] = {
        "anyOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}]
    }
    kinds: dict[str, Any] = {"label": _TEXT, "text": _TEXT, "proto": _TEXT, "port": port}
    kinds |= dict.fromkeys(("ip", "src_ip", "dest_ip"), address)
    listed = [
        {"name": f"{no}{name}", "in": "query", "schema": {"type": "array", "maxItems": 4, "items": items}}
        for no in ("", "not.")
        for name, items in kinds.items()
    ]
    share = {"type": "number", "minimum": 0, "maximum": 1}
    second = {"type": "number", "minimum": 0, "maximum": 1e11}
    single = {"min_probability": share, "max_probability": share, "since": second, "until": second}
    flags = {"unknown": {"type": "boolean"}, "final": {"type": "boolean"}}
    return listed + [{"name": n, "in": "query", "schema": schema} for n, schema in (single | flags).items()]


def _events() -> dict[str, Any]:
    header = {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string", "maxLength": 64}}
    return {
        "summary": "Server-sent events: the lines as they come; never ends",
        "parameters": [
            header,
            _number("max_per_s", 1, 100_000, "samples only, at most so many"),
            *_filters(),
        ],
        "responses": {"200": {"description": "Events", "content": {"text/event-stream": {}}}}
        | _answers(None, {}, 400, 503),
    }


def _post_label() -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["flow_id", "label"],
        "additionalProperties": False,
        "properties": {
            "flow_id": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
            "label": {
                "type": ["string", "null"],
                "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]*$",
                "maxLength": 200,
            },
            "note": {"type": "string", "maxLength": 1000},
        },
    }
    done = _object("flow_id", "label", "can_teach")
    return {
        "summary": "Give a flow its right label, or take it back with null",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": _answers(201, done, 400, 403, 404, 413, 415, 503) | _answers(200, done),
    }


def _post_capture() -> dict[str, Any]:
    return {
        "summary": "Classify the capture in the body",
        "requestBody": {"required": True, "content": {"application/octet-stream": {}}},
        "responses": _answers(
            200, _object("events", "stats", "warnings", "truncated"), 400, 403, 413, 422, 503, 504
        ),
    }
