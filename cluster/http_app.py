"""The ASGI application: routes, problem documents, and an OpenAPI document made from the request models.

Bodies are parsed by `cluster.body`, not by FastAPI, so their schemas are declared here by hand, route by route.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from cluster import safekeeping_schemas, schemas
from cluster.body import JSON, MSGPACK
from cluster.problems import PROBLEM, install
from cluster.routes import Routes

_REF = "#/components/schemas/{model}"
_REQUESTS: list[type[BaseModel]] = [
    schemas.TenantRequest,
    schemas.FactRequest,
    schemas.WriteRequest,
    schemas.QueryRequest,
    schemas.ForgetRequest,
    safekeeping_schemas.CheckpointRequest,
    safekeeping_schemas.RestoreBody,
]
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "1 to 255 printable ASCII characters, the same on each retry of one request",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


def _page_parameter(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": {"type": "integer"}}


@dataclass(frozen=True, slots=True)
class _Route:
    method: str
    path: str
    endpoint: Callable[..., Any]
    reply: type[BaseModel] | None = None
    status: int = 200
    body: tuple[type[BaseModel], ...] = ()
    parameters: tuple[dict[str, Any], ...] = ()
    keyless: bool = False


def _routes(of: Routes) -> list[_Route]:
    once = (_IDEMPOTENCY_KEY,)
    perhaps_once = ({**_IDEMPOTENCY_KEY, "required": False},)  # previews and dry runs change nothing
    page = (_page_parameter("limit", "facts on a page"), _page_parameter("after", "`next_after` of the page before"))
    tenants, tenant = "/v1/tenants", "/v1/tenants/{tenant}"
    write_bodies = (schemas.WriteRequest, schemas.FactRequest)
    return [
        _Route("POST", tenants, of.create_tenant, schemas.TenantCreatedReply, 201, (schemas.TenantRequest,), once),
        _Route("GET", tenants, of.list_tenants, schemas.TenantsReply),
        _Route("GET", tenant, of.show_tenant, schemas.TenantReply),
        _Route("DELETE", tenant, of.delete_tenant, schemas.TenantDeletedReply, parameters=once),
        _Route("POST", tenant + "/key", of.renew_key, schemas.KeyReply, 201, parameters=once),
        _Route("POST", tenant + "/facts", of.write, schemas.WriteResponse, body=write_bodies, parameters=once),
        _Route("GET", tenant + "/facts", of.list_facts, schemas.FactsReply, parameters=page),
        _Route("GET", tenant + "/facts/{fact_id}", of.show_fact, schemas.FactReply),
        _Route("POST", tenant + "/query", of.query, schemas.QueryResponse, body=(schemas.QueryRequest,)),
        _Route(
            "POST",
            tenant + "/forget",
            of.forget,
            schemas.ForgetResponse,
            body=(schemas.ForgetRequest,),
            parameters=perhaps_once,
        ),
        _Route("POST", tenant + "/verify", of.verify, schemas.VerifyResponse),
        *_safekeeping_routes(of),
        _Route("GET", "/v1/status", of.status),
        _Route("GET", "/livez", of.livez, keyless=True),
        _Route("GET", "/readyz", of.readyz, keyless=True),
    ]


def _safekeeping_routes(routes: Routes) -> list[_Route]:
    of, bodies, tenant = routes.safekeeping, safekeeping_schemas, "/v1/tenants/{tenant}"
    once = (_IDEMPOTENCY_KEY,)
    checkpoint, restore = (bodies.CheckpointRequest,), (bodies.RestoreBody,)
    return [
        _Route("POST", tenant + "/checkpoints", of.checkpoint, bodies.CheckpointReply, 201, checkpoint),
        _Route("GET", tenant + "/checkpoints", of.list_checkpoints, bodies.CheckpointsReply),
        _Route("POST", tenant + "/restore", of.restore, bodies.RestoreResponse, 201, restore, once),
        _Route("POST", tenant + ":sleep", of.sleep, schemas.TenantReply),
        _Route("POST", tenant + ":wake", of.wake, schemas.TenantReply),
        _Route("GET", tenant + "/doctor", of.doctor, bodies.DoctorReply),
        _Route("GET", "/v1/doctor", of.doctor_all, bodies.DoctorReply),
        _Route("GET", "/v1/receipts/{receipt_id}", of.receipt, bodies.ReceiptReply),
    ]


def create_app(routes: Routes, *, echo_request_id: bool = True) -> FastAPI:
    """The application over `routes`. `echo_request_id` is False behind Ray Serve, which adds the header itself."""
    # FastAPI's documentation pages load scripts from a CDN; only the document itself is served.
    app = FastAPI(title="larimar-serve", version=_version(), docs_url=None, redoc_url=None, redirect_slashes=False)
    for route in _routes(routes):
        app.add_api_route(
            route.path,
            route.endpoint,
            methods=[route.method],
            status_code=route.status,
            response_model=None,
            responses={
                route.status: {"model": route.reply} if route.reply else {"description": "Successful Response"},
                "default": {"description": "A problem", "content": {PROBLEM: {"schema": _ref(schemas.Problem)}}},
            },
            openapi_extra=_openapi_extra(route),
            operation_id=getattr(route.endpoint, "__name__", None),
        )
    install(app, echo_request_id=echo_request_id)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # as FastAPI documents it
    return app


def _version() -> str:
    try:
        return version("larimar-serve")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0+unknown"


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def _openapi_extra(route: _Route) -> dict[str, Any]:
    extra: dict[str, Any] = {} if route.keyless else {"security": [{"key": []}]}
    if route.parameters:
        extra["parameters"] = list(route.parameters)
    if route.body:
        refs = [_ref(model) for model in route.body]
        schema = refs[0] if len(refs) == 1 else {"oneOf": refs}
        extra["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}, MSGPACK: {"schema": schema}}}
    return extra


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made once: FastAPI's own plus the request models and the bearer scheme."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        components = document.setdefault("components", {})
        known = components.setdefault("schemas", {})
        _, made = models_json_schema(
            [(model, "validation") for model in _REQUESTS] + [(schemas.Problem, "serialization")], ref_template=_REF
        )
        known.update(made["$defs"])
        # FastAPI describes its own 422 shape, which is never sent.
        known.pop("HTTPValidationError", None)
        known.pop("ValidationError", None)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
    return app.openapi_schema
