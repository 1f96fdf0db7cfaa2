"""The Serve application: encoder, decoder and gateway, over the memory actors.

    serve run cluster.app:build_app state_dir=/srv/larimar http.port=8001
    serve deploy ray_config.yaml

Builds with nothing heavy imported: models and torch are loaded in the replicas.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

import ray
from ray import serve

from cluster.gateway import Gateway
from cluster.ledger_check import check_actors
from cluster.settings import DecoderSettings, EncoderSettings, Settings, settings_from
from memory_actor.actor import MemoryActor
from memory_actor.directory import actor_name
from memory_actor.types import MemoryConfig
from workers.bundle import Bundle, materialise_bundle
from workers.decoder_worker import DecoderWorker
from workers.encoder_worker import EncoderWorker

APPLICATION = "larimar"
# Calls that wait for their turn inside an actor; its own queue limit answers 503 long before.
ACTOR_CONCURRENCY = 4096
GRACEFUL_SHUTDOWN_S = 5.0
CLOSE_TIMEOUT_S = 10.0  # an erasure may be waiting for a storage that does not answer


def build_app(args: dict[str, Any]) -> serve.Application:
    """The application for `args`, settings as nested mappings or dotted keys (`http.port`).

    Makes sure that the bundle is materialised and the memory actors run; both are left alone when they are there.
    Raises: SettingsInvalid, ModelMissing, BundleMismatch and other StartupErrors.
    """
    settings = settings_from(args, "applications[0].args")
    check_actors(settings)
    parts = settings.bundle
    bundle = materialise_bundle(
        settings.state_dir / "bundle",
        encoder=parts.encoder,
        decoder=parts.decoder,
        codec=parts.codec,
        answer_bias=parts.answer_bias,
        verify=parts.verify,
    )
    ensure_memory_actors(settings, bundle.memory_config())
    return bind_application(settings, bundle)


def bind_application(settings: Settings, bundle: Bundle) -> serve.Application:
    """The graph of deployments, nothing started."""
    folder = str(bundle.folder)
    encoder = cast(Any, EncoderWorker).options(**_options(settings.encoder)).bind(folder, settings.encoder.model_dump())
    decoder = cast(Any, DecoderWorker).options(**_options(settings.decoder)).bind(folder, settings.decoder.model_dump())
    gateway = Gateway.options(
        num_replicas=settings.gateway.replicas,
        max_ongoing_requests=settings.gateway.max_ongoing_requests,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_S,
    )
    application: serve.Application = gateway.bind(
        settings.model_dump(mode="json"), encoder, decoder, bundle.second_stage()
    )
    return application


def _options(worker: EncoderSettings | DecoderSettings) -> dict[str, Any]:
    return {
        "num_replicas": worker.replicas,
        "max_ongoing_requests": worker.max_ongoing_requests,
        "ray_actor_options": {"num_cpus": worker.num_cpus, "num_gpus": worker.num_gpus},
        "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_S,
    }


def ensure_memory_actors(settings: Settings, config: MemoryConfig) -> list[Any]:
    """Handles of all memory actors; those that do not run are started. Returns before they have replayed."""
    memory, ledger = settings.memory, settings.ledger
    return [
        cast(Any, MemoryActor)
        .options(
            name=actor_name(index),
            namespace=settings.ray.namespace,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=ACTOR_CONCURRENCY,
            num_cpus=memory.num_cpus,
            num_gpus=memory.num_gpus,
        )
        .remote(
            index,
            str(settings.state_dir),
            config,
            device=memory.device,
            reader_threads=memory.reader_threads,
            torch_threads=memory.torch_threads,
            group_facts_max=ledger.group_facts_max,
            queue_max=ledger.queue_max,
            idempotency_hours=ledger.idempotency_hours,
            ledger_url=ledger.url,
            reserve_mb=ledger.reserve_mb,
            hot_mb=memory.hot_mb,
            erase_window_s=settings.erase.window_s,
            checkpoints_keep=settings.checkpoints.keep,
            locations=settings.checkpoint_locations,
            keys_folder=str(settings.keys_folder),
        )
        for index in range(memory.actors)
    ]


def stop_memory_actors(settings: Settings) -> None:
    """End the memory actors, cleanly if they can in time; what they acknowledged is in their ledgers either way."""
    actors = []
    for index in range(settings.memory.actors):
        with contextlib.suppress(ValueError):  # it does not run
            actors.append(ray.get_actor(actor_name(index), settings.ray.namespace))
    if actors:
        ray.wait([actor.close.remote() for actor in actors], num_returns=len(actors), timeout=CLOSE_TIMEOUT_S)
    for actor in actors:
        ray.kill(actor)
