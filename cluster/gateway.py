"""The gateway: the Serve ingress deployment. The application is built on the replica, over Ray handles.

Serve reads control headers (`x-request-timeout-seconds`, `x-request-disconnect-disabled`) before the application sees
a request. They cannot lengthen one here: the router keeps its own deadline, and changes are shielded anyway.
"""

from __future__ import annotations

import gc
from typing import Any

from fastapi import FastAPI
from ray import serve

from cluster.auth import KeyStore
from cluster.handles import RayMemoryDirectory, ServeDecoder, ServeEncoder
from cluster.hardening import forbid_core_dumps
from cluster.http_app import create_app
from cluster.router import Router
from cluster.routes import Routes
from cluster.settings import Settings
from workers.ports import SecondStage


class GatewayReplica:
    """One gateway process: keys, limits, validation, routing; no model and no algebra.

    Args: settings: a plain dict of `Settings`; encoder, decoder: Serve handles bound by the application builder;
    second_stage: the bundle's gate behind the cosine, None if it has none.
    """

    def __init__(self, settings: dict[str, Any], encoder: Any, decoder: Any, second_stage: SecondStage | None) -> None:
        forbid_core_dumps()  # where a supervisor of ours started Ray, it has been done for all processes
        self._settings = Settings.model_validate(settings)
        memory = RayMemoryDirectory(self._settings.memory.actors, self._settings.ray.namespace)
        timeout_s = self._settings.http.request_timeout_s
        self._router = Router(
            memory,
            ServeEncoder(encoder),
            ServeDecoder(decoder),
            timeout_s=timeout_s,
            second_stage=second_stage,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application; called by Serve once per replica, after the constructor."""
        keys = KeyStore(self._settings.state_dir / "control.sqlite", self._settings.gateway.key_cache_s)
        # Serve answers with the request id by itself; twice would make two header lines.
        app = create_app(Routes(self._router, keys, self._settings), echo_request_id=False)
        # Everything imported and built so far lives on: collections during requests need not look at it.
        gc.collect()
        gc.freeze()
        return app


#: Bound as `Gateway.bind(settings_dict, encoder_handle, decoder_handle, second_stage)`; replicas and limits set with
#: `.options()`.
Gateway = serve.deployment(name="Gateway")(serve.ingress()(GatewayReplica))
