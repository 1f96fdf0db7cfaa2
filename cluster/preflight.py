"""What can keep the system from starting, found before anything is touched."""

from __future__ import annotations

import os

from cluster.bundle_builder import check_models
from cluster.ray_environment import is_loopback, port_is_free
from cluster.settings import Settings
from cluster.state_folder import StateFolder
from memory_actor.errors import AlreadyRunning, ExposureRefused, PortTaken


def preflight(settings: Settings) -> None:
    """Pass if a system with these settings can start now.

    Raises: ExposureRefused, StateFolderUnusable, AlreadyRunning, PortTaken, ModelMissing.
    """
    host, port = settings.http.host, settings.http.port
    if not is_loopback(host) and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise ExposureRefused(host)
    folder = StateFolder(settings.state_dir)
    folder.check()
    system = folder.running()
    if system is not None:
        raise AlreadyRunning(system.url, system.pid, folder.path)
    if not port_is_free(host, port):
        raise PortTaken(host, port)
    check_models(folder.bundle, settings.bundle)
