"""The one process behind `larimar up`: checks, starts everything, waits, stops everything.

Nothing heavy is imported here: torch lives in the actors and replicas, and a first start converts the models in a
process of its own. Should this one be killed, a reaper ends everything it started.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cluster.auth import KeyStore
from cluster.bundle_builder import prepare_bundle
from cluster.hardening import forbid_core_dumps
from cluster.preflight import preflight
from cluster.ray_environment import TEMP_PREFIX, make_temp_dir, plan_ray
from cluster.reaper import reap, reaper
from cluster.settings import Settings
from cluster.startup_events import Failed, Listener, PipeWriter, Ready, StageReached
from cluster.state_folder import RunningSystem, StateFolder
from memory_actor.errors import StartupError, StartupFailed
from workers.bundle import Bundle

if TYPE_CHECKING:
    from ray.serve.schema import ServeStatus

log = logging.getLogger("larimar.supervisor")

READY_TIMEOUT_S = 120.0
POLL_S = 0.1
SERVE_SHUTDOWN_S = 15.0


class Supervisor:
    """One system on one machine. `run` returns after an orderly stop."""

    def __init__(self, settings: Settings, tell: Listener) -> None:
        self._settings = settings
        self._tell = tell
        self._folder = StateFolder(settings.state_dir)
        self._stop = threading.Event()
        self._started = time.time()

    def request_stop(self) -> None:
        """Let `run` stop the system and return. May be called from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Start, announce, wait for `request_stop`, stop. Raises: StartupError."""
        forbid_core_dumps()
        preflight(self._settings)
        with ExitStack() as stack:
            self._folder.prepare()
            stack.enter_context(self._folder.lock())
            self._remove_leftovers()
            bundle = prepare_bundle(self._folder.bundle, self._settings.bundle, self._tell, self._stop)
            if self._stop.is_set():
                return
            keys = KeyStore(self._folder.control)
            temp_dir = make_temp_dir()
            stack.enter_context(reaper(temp_dir))
            self._check_ledgers(bundle)
            self._start_ray(temp_dir)
            stack.callback(_shut_down, self._settings)
            self._start_application(bundle)
            self._await_ready()
            if self._stop.is_set():
                return
            # Last, so that a start that fails has not made a key nobody has seen.
            self._announce(keys.ensure_admin(time.time()), temp_dir, stack)
            self._stop.wait()
            log.info("stopping")

    def _remove_leftovers(self) -> None:
        """Clear what a supervisor left that was killed together with its reaper."""
        recorded = self._folder.recorded()
        if recorded is None:
            return
        if Path(recorded.temp_dir).name.startswith(TEMP_PREFIX):
            reap(Path(recorded.temp_dir))
        self._folder.forget_recorded()

    def _check_ledgers(self, bundle: Bundle) -> None:
        """Raises what would keep a memory actor from opening its ledger, before any process could meet it."""
        from cluster.ledger_check import check_ledgers  # noqa: PLC0415 - after the checks that cost nothing

        check_ledgers(self._settings, bundle.memory_config())

    def _start_ray(self, temp_dir: Path) -> None:
        self._tell(StageReached("Starting Ray"))
        plan = plan_ray(self._settings, self._folder.ray_token(), temp_dir)
        plan.apply(os.environ)
        import ray  # noqa: PLC0415 - reads the environment when it is imported

        # Ray's processes keep one core busy at a time; the second imports what is needed next (about 2 s).
        importing = threading.Thread(target=importlib.import_module, args=("cluster.app",))
        importing.start()
        ray.init(**plan.init_arguments)
        importing.join()
        # Ray's own handlers end the process at once; ours let `run` finish.
        stop_on_signals(self.request_stop)

    def _start_application(self, bundle: Bundle) -> None:
        """Start memory actors, Serve and the replicas side by side, and wait for the replicas.

        `serve.start` returns when the proxies answer, seconds after its controller could already start replicas. So
        it runs on a thread, and the application is deployed as soon as the controller has a name.
        """
        from ray import serve  # noqa: PLC0415 - after the environment is set

        from cluster.app import APPLICATION, bind_application, ensure_memory_actors  # noqa: PLC0415

        self._tell(StageReached("Starting memory actors, encoder, decoder and gateway"))
        actors = ensure_memory_actors(self._settings, bundle.memory_config())
        http = {"host": self._settings.http.host, "port": self._settings.http.port}
        starting = threading.Thread(target=serve.start, kwargs={"http_options": http}, daemon=True)
        starting.start()
        _await_controller(starting)
        try:
            serve.run(bind_application(self._settings, bundle), name=APPLICATION)
        except RuntimeError as error:
            reason = _application_problem(serve.status()) or str(error)
            raise StartupFailed("the application", reason, self._folder.log) from error
        starting.join()
        self._await_actors(actors)

    def _await_actors(self, actors: list[Any]) -> None:
        import ray  # noqa: PLC0415

        self._tell(StageReached("Replaying the ledger"))
        try:
            ray.get([actor.status.remote() for actor in actors])
        except ray.exceptions.RayActorError as error:
            raise StartupFailed("a memory actor", str(error).splitlines()[-1], self._folder.log) from error

    def _await_ready(self) -> None:
        """Wait until /readyz answers 200: every component has answered."""
        self._tell(StageReached("Waiting for the first answer"))
        deadline = time.monotonic() + READY_TIMEOUT_S
        answer = "no answer"
        while not self._stop.is_set():
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=5):  # noqa: S310 - our own http address
                    return
            except urllib.error.HTTPError as error:
                answer = error.read(2000).decode(errors="replace")
            except OSError as error:
                answer = str(error)
            if time.monotonic() > deadline:
                reason = f"/readyz says after {READY_TIMEOUT_S:.0f} s: {answer}"
                raise StartupFailed("the system", reason, self._folder.log)
            self._stop.wait(POLL_S)

    @property
    def url(self) -> str:
        host = self._settings.http.host
        reachable = host if host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104 - compared with
        return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{self._settings.http.port}"

    def _announce(self, admin_key: str | None, temp_dir: Path, stack: ExitStack) -> None:
        import ray  # noqa: PLC0415

        start_s = time.time() - self._started
        system = RunningSystem(
            pid=os.getpid(),
            process_started_at=psutil.Process().create_time(),
            url=self.url,
            started_at=self._started,
            start_s=round(start_s, 3),
            ray_address=ray.get_runtime_context().gcs_address,
            temp_dir=str(temp_dir),
        )
        self._folder.record(system)
        stack.callback(self._folder.forget_recorded)
        log.info("ready at %s after %.1f s", self.url, start_s)
        self._tell(Ready(self.url, admin_key, start_s))


def _await_controller(starting: threading.Thread) -> None:
    import ray  # noqa: PLC0415
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE  # noqa: PLC0415

    while starting.is_alive():
        with contextlib.suppress(ValueError):  # it has no name yet
            ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
            return
        time.sleep(POLL_S / 2)


def _application_problem(status: ServeStatus) -> str:
    """Why a deployment is unhealthy, in its own words."""
    messages = [
        deployment.message
        for application in status.applications.values()
        for deployment in application.deployments.values()
        if deployment.message
    ]
    lines = [line for message in messages for line in message.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _shut_down(settings: Settings) -> None:
    """Stop accepting requests, end replicas and actors, then Ray. Each step goes on when the one before failed."""
    import ray  # noqa: PLC0415
    from ray import serve  # noqa: PLC0415

    from cluster.app import stop_memory_actors  # noqa: PLC0415

    with _going_on("serve.shutdown"):
        serve.shutdown()
    with _going_on("memory actors"):
        stop_memory_actors(settings)
    with _going_on("ray.shutdown"):
        ray.shutdown()


@contextlib.contextmanager
def _going_on(step: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        # A failed step must not leave the other processes behind.
        log.exception("%s failed while stopping", step)


def stop_on_signals(stop: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop())


def main(descriptor: int) -> int:
    """Run the supervisor whose settings arrive as JSON on stdin and whose events go to `descriptor`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    tell = PipeWriter(descriptor)
    supervisor = Supervisor(Settings.model_validate(json.loads(sys.stdin.read())), tell)
    stop_on_signals(supervisor.request_stop)
    try:
        supervisor.run()
    except StartupError as error:
        log.error("%s: %s", error.code, error)  # noqa: TRY400 - an expected refusal; its message says it all
        tell(Failed(error.code, str(error)))
        return 1
    except Exception as error:
        log.exception("unexpected")
        tell(Failed("internal", f"{type(error).__name__}: {error}"))
        return 1
    finally:
        tell.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
