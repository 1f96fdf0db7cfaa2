"""The bundle of a state folder: opened when it fits the settings, built in a process of its own when it does not.

Building imports torch and holds the decoder twice; the process takes that memory away with it when it ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cluster.settings import BundleSettings
from cluster.startup_events import Listener, StageReached
from memory_actor.errors import LarimarError, ModelMissing, StartupFailed
from workers.bundle import Bundle, materialise_bundle, prompt_part
from workers.codec_card import TOKEN_CODEC, locate_codec
from workers.sources import locate_model
from workers.trained_scope import SCOPE_ENCODER, read_card

POLL_S = 0.1


def check_models(folder: Path, parts: BundleSettings) -> None:
    """Raises ModelMissing if there is neither a bundle nor what it is made of. Hub names are left for later."""
    with contextlib.suppress(ModelMissing):
        Bundle.open(folder)
        return
    if parts.codec != TOKEN_CODEC:
        locate_codec(parts.codec)
    for what, source in (("encoder", parts.encoder), ("decoder", parts.decoder)):
        if source == SCOPE_ENCODER:
            locate_model(read_card()["base"], what)
        elif source.startswith("package:") or Path(source).is_absolute():
            locate_model(source, what)


def prepare_bundle(folder: Path, parts: BundleSettings, tell: Listener, stop: threading.Event) -> Bundle:
    """The bundle of these models in `folder`. Ends early, without one, when `stop` is set.

    Raises: ModelMissing; StartupFailed when the building process was killed or stopped.
    """
    if not _fits(folder, parts):
        _build(folder, parts, tell, stop)
    return Bundle.open(folder)


def _fits(folder: Path, parts: BundleSettings) -> bool:
    try:
        bundle = Bundle.open(folder)
    except ModelMissing:
        return False
    manifest = bundle.manifest
    verified = parts.verify and parts.encoder == SCOPE_ENCODER
    same = (
        bundle.sources == (parts.encoder, parts.decoder, parts.codec)
        and manifest.prompt == prompt_part(parts.codec, parts.answer_bias)
        and (manifest.verifier is None) == (not verified)
    )
    return same and bundle.is_current() and bundle.identity_files_intact() and bundle.verifier_is_current()


def _build(folder: Path, parts: BundleSettings, tell: Listener, stop: threading.Event) -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_materialise, args=(sender, folder, parts.model_dump()))
    process.start()
    sender.close()
    try:
        with receiver:
            _follow(receiver, tell, stop)
    finally:
        if stop.is_set():
            process.terminate()
        process.join()
    if process.exitcode != 0:
        raise StartupFailed(
            "the model conversion", f"its process ended with {process.exitcode}", "the supervisor's log"
        )


def _follow(receiver: Connection, tell: Listener, stop: threading.Event) -> None:
    """Pass the progress on until the other end is closed. Raises what was raised there."""
    while not stop.is_set():
        if not receiver.poll(POLL_S):
            continue
        try:
            message = receiver.recv()
        except EOFError:
            return
        if isinstance(message, LarimarError):
            raise message
        tell(StageReached(*message))


def _materialise(sender: Connection, folder: Path, parts: dict[str, Any]) -> None:
    """Body of the building process: progress as (step, share), a refusal as itself, then the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the supervisor decides
    with sender, contextlib.suppress(BrokenPipeError):
        try:
            materialise_bundle(folder, progress=lambda step, share: sender.send((step, share)), **parts)
        except LarimarError as error:
            sender.send(error)
