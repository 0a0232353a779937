"""The appliance: capture or spool in, sinks, control socket and page out, for months.

startup -> main_loop (on_tick) -> shutdown

capture thread -> |StepQueue| -> answer thread (model, events) -> |queue| -> a thread for each sink
                                                               '> |queue| -> ...
main thread: signals, overload policy, stats, watchdog.   guard thread: ends the process if a stage stands still.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET

from capture.errors import NetclsError
from netcls.daemon.faults import Faults
from netcls.daemon.notify import notify, watchdog_s
from netcls.daemon.outputs import names_of, runner_settings, sink_of
from netcls.daemon.overload import OverloadPolicy, Step
from netcls.daemon.publisher import Publisher
from netcls.daemon.stages import StageBoard
from netcls.daemon.status import stats_of, status_of
from netcls.daemon.tallies import Tallies
from netcls.pipeline import Answerer
from netcls.sinks.runner import SinkRunner

if TYPE_CHECKING:
    from capture.flow_batch import FlowBatch, KeepSpec
    from models.checkpoint import Checkpoint
    from netcls.counters import Counters
    from netcls.daemon.config import ServeConfig
    from netcls.daemon.spool import SpoolRun
    from netcls.live import LiveRun
    from netcls.sinks.base import Sink

_LOG: Final = logging.getLogger("netcls.daemon")

TICK_S: Final = 0.1
_GUARD_S: Final = 0.25
_WIND_DOWN_S: Final = 2.0  # for the healthy sinks when a stage has died
_SINK_PATIENCE: Final = 3  # a sink may be silent so many times longer than another stage: networks are slow
_LARGE_BATCH_FLOWS: Final = 64
_LARGE_BATCH_WAIT: Final = 5

EXIT_DONE: Final = 0
EXIT_DEFECT: Final = 1


class Appliance:
    """A running ``netcls serve``.

    Args:
        config: checked.
        make_run: makes what brings events, from who answers; called once.
        page_sinks: sinks of the web part, each with its queue size.
        reread: gives the configuration as it is now in file and environment; None: reload loads the model anew only.
        faults: on purpose.

    Attributes:
        config: in force.
        board: of all stages.
        tallies: of what was answered.
        publisher: hands events to the sinks.
        policy: of overload.
        run: what brings events.
        url: of page and API; empty: there is none.
        servers: threads that must live, such as the web server's.
        config_reload_success: 1 unless the last reload failed.

    Raises:
        CheckpointError: if a model cannot be loaded.
    """

    def __init__(
        self,
        config: ServeConfig,
        make_run: Callable[[ServeConfig, Answerer], LiveRun | SpoolRun],
        *,
        page_sinks: Sequence[tuple[Sink, int]] = (),
        reread: Callable[[], ServeConfig] | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.config = config
        self.board = StageBoard()
        self.tallies = Tallies()
        self.faults = faults or Faults()
        self.publisher = Publisher(self.tallies, self.faults.at("output"))
        self.url = ""
        self.servers: list[Any] = []
        self.config_reload_success = 1
        self.last_reload_error = ""
        self.started_s = time.monotonic()
        self.state = "starting"
        self._reread = reread
        self._requested: list[str] = []
        self._wake = threading.Event()
        self._is_stopping = False
        self._has_ended = threading.Event()
        self._exit_code = EXIT_DONE
        self._reload_lock = threading.Lock()
        self._flow_watcher: Callable[[FlowBatch, KeepSpec], None] | None = None
        self.answerers = {"main": self._load(config.model)}
        if config.small_model is not None:
            self.answerers["small"] = self._load(config.small_model)
        self.policy = OverloadPolicy(has_small_model="small" in self.answerers)
        self.run = make_run(config, self.answerers["main"])
        self._retired: list[Answerer] = []
        self._n_warned = 0
        self._n_dropped = 0
        self._page_runners = [
            self._runner(sink, queue_events, "drop_oldest") for sink, queue_events in page_sinks
        ]
        self.outputs: dict[str, SinkRunner] = {}
        for uri in config.output:
            self._add_output(uri)
        self._publish_to_all()
        self._answer_thread = threading.Thread(target=self._answer, name="netcls-answer", daemon=True)
        self._tick_fault = self.faults.at("tick")

    # --- what web and control ask ---------------------------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        """The books: at most half a second old, and in balance."""
        return self.run.books

    @property
    def checkpoint(self) -> Checkpoint:
        """The model that answers now."""
        return (self.run.answerer or self.answerers["main"]).checkpoint

    @property
    def uptime_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started_s

    @property
    def runners(self) -> Sequence[SinkRunner]:
        """Of all sinks."""
        return self.publisher.runners

    def status(self) -> dict[str, Any]:
        """JSON values: state, uptime, queues, sinks, what was lost; see :func:`netcls.daemon.status.status_of`."""
        return status_of(self)

    def request(self, what: str) -> None:
        """Ask the main thread for ``reload``, ``reopen``, ``stats`` or ``shutdown``. Safe in a signal handler."""
        self._requested.append(what)
        self._wake.set()

    def request_shutdown(self) -> None:
        """Stop soon, with everything delivered that the drain time allows."""
        self.request("shutdown")

    def reopen(self) -> None:
        """Let every sink open its file anew."""
        for runner in self.runners:
            runner.reopen()

    def reload(self) -> str:
        """Read configuration and model again, and reopen the sinks; no flow is lost. From any thread.

        Returns:
            What changed, in a line.

        Raises:
            NetclsError: if that cannot be; everything goes on as before.
        """
        from netcls.daemon.reload import reload_appliance

        with self._reload_lock:
            self.reopen()
            try:
                said = reload_appliance(self, self._reread)
            except NetclsError as error:
                self.config_reload_success, self.last_reload_error = 0, str(error)
                _LOG.error("reload failed, everything goes on as before: %s", error)
                self.publisher.engine("reload", f"failed: {error}", success=False)
                raise
            self.config_reload_success, self.last_reload_error = 1, ""
            _LOG.info("reload: %s", said)
            self.publisher.engine("reload", said, success=True)
            return said

    # --- the life of a daemon -------------------------------------------------------------------------------------

    def serve(self) -> int:
        """From start to stop; returns the exit code."""
        self.startup()
        try:
            self.main_loop()
        finally:
            self.shutdown()
        return self._exit_code

    def startup(self) -> None:
        """Everything begins; READY is said when packets are looked for."""
        limit_s = self.config.stall_timeout_s
        self._main_stage = self.board.add("main", limit_s)
        self._answer_stage = self.board.add("answer", limit_s)
        self._capture_stage = self.board.add("capture", limit_s)
        run = self.run
        run.on_news = self._on_news
        run.on_answered = self.tallies.answered
        if (at_predict := self.faults.at("predictor")) is not None:
            run.at_predict = lambda flows: at_predict(len(flows))
        run.watch(self._capture_stage.beat, self.faults.at("capture"), self.faults.at("decode"))
        for runner in self.runners:
            runner.start()
        name = self.answerers["main"].name
        message = f"netcls {_version()} with {name.name} ({name.checkpoint}) on {self._sources_text()}"
        self.publisher.engine("start", message, model=name.name, checkpoint=name.checkpoint)
        run.start()
        self._answer_thread.start()
        threading.Thread(target=self._guard, name="netcls-guard", daemon=True).start()
        self.state = "running"
        self.started_s = time.monotonic()
        self._next_stats_s = time.monotonic() + self.config.stats_interval_s
        self._watchdog_s = watchdog_s()
        self._next_ping_s = 0.0
        self._next_status_s = 0.0
        self._is_new = True
        _LOG.info("%s", message)
        if self.url:
            _LOG.info("page and API at %s", self.url)

    def main_loop(self) -> None:
        """Until someone asks for the end, or there is nothing left to do."""
        while not self._is_stopping and not self._has_ended.is_set():
            self._wake.wait(TICK_S)
            self._wake.clear()
            self.on_tick()

    def on_tick(self) -> None:
        """Ten times a second, and when something was asked for."""
        self._main_stage.beat()
        if self._tick_fault is not None:
            self._tick_fault(1)
        while self._requested:
            self._do(self._requested.pop(0))
        self._warn()
        self._look_at_load()
        if not all(server.is_alive for server in self.servers):
            self._main_stage.failure = RuntimeError("the page's or the control socket's thread has ended")
        now_s = time.monotonic()
        if now_s >= self._next_stats_s:
            self._next_stats_s = now_s + self.config.stats_interval_s
            self._tell_stats()
        self._tell_service_manager(now_s)

    def shutdown(self) -> None:
        """Stop capturing, end and answer all flows, empty the sinks; not longer than the drain time allows."""
        end_s = time.monotonic() + self.config.drain_s
        self._is_stopping = True
        self.state = "stopping"
        notify("STOPPING=1\nSTATUS=ending all flows")
        self.run.stop()
        if not self._has_ended.wait(max(self.config.drain_s - _WIND_DOWN_S, 0.0)):
            _LOG.warning(
                "the drain time of %g s is over; %d flows are left out",
                self.config.drain_s,
                self._n_waiting(),
            )
        self._warn()
        self._tell_stats()
        self.publisher.engine("stop", f"after {self.uptime_s:.0f} s", exit_code=self._exit_code)
        if self._has_ended.is_set():
            self.publisher.flush()
        for runner in self.runners:
            runner.close(max(end_s - time.monotonic(), 0.5))
            self.board.remove(f"sink.{runner.name}")
        for line in self.counters.live_lines():
            _LOG.info("%s", line)
        for runner in self.runners:
            counted = runner.counters
            _LOG.info(
                "sink %s: %d sent, %d dropped, %d failed",
                runner.name,
                counted.sent,
                counted.dropped,
                counted.failed,
            )

    def close(self) -> None:
        """Leave the interfaces and end the model's threads."""
        self.run.close()
        for answerer in self.answerers.values():
            answerer.close()

    # --- sinks ----------------------------------------------------------------------------------------------------

    def watch_flows(self, watcher: Callable[[FlowBatch, KeepSpec], None]) -> None:
        """Show flows with their first packets to someone else before a model is asked about them."""
        self._flow_watcher = watcher
        for answerer in self.answerers.values():
            answerer.watch = watcher

    def change_outputs(self, uris: Sequence[str]) -> tuple[list[str], list[str]]:
        """Sinks of other URIs from now on; those that stay keep their queues.

        Returns:
            URIs that came, and that went.

        Raises:
            UsageError: for a URI that cannot be; nothing has changed then.
        """
        came = [uri for uri in uris if uri not in self.outputs]
        gone = [uri for uri in self.outputs if uri not in uris]
        for uri in came:
            runner_settings(uri, self.config)
            sink_of(uri, ())
        for uri in came:
            self._add_output(uri).start()
        leaving = [self.outputs.pop(uri) for uri in gone]
        self._publish_to_all()
        for runner in leaving:
            runner.close()
            self.board.remove(f"sink.{runner.name}")
        return came, gone

    def _add_output(self, uri: str) -> SinkRunner:
        taken = names_of([*self._page_runners, *self.outputs.values()])
        runner = self._runner(sink_of(uri, taken), *runner_settings(uri, self.config))
        self.outputs[uri] = runner
        return runner

    def _publish_to_all(self) -> None:
        self.publisher.runners = (*self.outputs.values(), *self._page_runners)

    def _runner(self, sink: Sink, queue_events: int, when_full: str) -> SinkRunner:
        stage = self.board.add(f"sink.{sink.name}", _SINK_PATIENCE * self.config.stall_timeout_s)
        return SinkRunner(
            sink,
            queue_events=queue_events,
            when_full=when_full,
            on_state=self._sink_changed,
            beat=stage.beat,
            on_blocked=self._beat_answer,
            at_write=self.faults.at(f"sink.{sink.name}"),
        )

    def _sink_changed(self, name: str, is_up: bool, why: str) -> None:
        if is_up:
            _LOG.info("sink %s is up: %s", name, why)
        else:
            _LOG.warning("sink %s is down: %s", name, why)
        self.publisher.engine("sink", why, sink=name, up=is_up)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _load(self, name: str) -> Answerer:
        answerer = Answerer.of(self.run_options(), self._checkpoint_of(name))
        answerer.warm_up()
        answerer.watch = self._flow_watcher
        return answerer

    def load(self, name: str) -> Answerer:
        """Another model, ready to answer.

        Raises:
            CheckpointError: if it cannot be loaded.
        """
        return self._load(name)

    def choose_model(self) -> None:
        """Let the model answer that the overload step wants."""
        is_small = self.policy.step >= Step.SMALL_MODEL and "small" in self.answerers
        wanted = self.answerers["small" if is_small else "main"]
        if self.run.answerer is not wanted:
            self.run.swap(wanted)

    def retire(self, answerer: Answerer) -> None:
        """Close a model as soon as nobody asks it any more."""
        self._retired.append(answerer)

    def run_options(self) -> Any:
        """The part of the configuration that runs share."""
        from netcls.daemon.runs import run_options

        return run_options(self.config)

    @staticmethod
    def _checkpoint_of(name: str) -> Checkpoint:
        from models.checkpoint import load_checkpoint

        return load_checkpoint(name)

    def _answer(self) -> None:
        """The answer thread."""
        try:
            for batch in self.run:
                self.publisher.flows(batch)
                self._answer_stage.beat()
            self._answer_stage.is_done = True
            self._capture_stage.is_done = True
        except BaseException as error:
            self._answer_stage.failure = error
            _LOG.debug("the answer thread died", exc_info=True)
        finally:
            self._has_ended.set()
            self._wake.set()

    def _on_news(self) -> None:
        self._beat_answer()
        self.publisher.flush()
        for answerer in list(self._retired):
            if self.run.answerer is not answerer:
                self._retired.remove(answerer)
                answerer.close()

    def _beat_answer(self) -> None:
        self._answer_stage.beat()

    def _do(self, what: str) -> None:
        if what == "shutdown":
            self._is_stopping = True
        elif what == "stats":
            for line in self.counters.live_lines():
                _LOG.info("%s", line)
            _LOG.info("status: %s", self.status())
        elif what == "reopen":
            self.reopen()
        elif what == "reload":
            threading.Thread(target=self._reload_quietly, name="netcls-reload", daemon=True).start()

    def _reload_quietly(self) -> None:
        try:
            self.reload()
        except NetclsError:
            return  # said where it happened
        except Exception as error:
            self._main_stage.failure = error

    def _warn(self) -> None:
        warnings = self.run.warnings
        while self._n_warned < len(warnings):
            _LOG.warning("%s", warnings[self._n_warned])
            self._n_warned += 1

    def _look_at_load(self) -> None:
        queue = self.run.queue
        if queue is None:
            return
        dropped = queue.dropped_ready + queue.dropped_ended
        was = self.policy.step
        fill = max(queue.depth / queue.limit, queue.ended_depth / queue.ended_limit)
        step = self.policy.look(fill, time.monotonic(), is_dropping=dropped > self._n_dropped)
        self._n_dropped = dropped
        if step != was:
            self._take_step(was, step, fill)

    def _take_step(self, was: Step, step: Step, fill: float) -> None:
        pace = self.run.pace
        threads = self.answerers["main"].threads
        is_large = step >= Step.LARGER_BATCHES
        pace.batch_flows = (_LARGE_BATCH_FLOWS if is_large else 4) * threads
        pace.patience_s = self.config.max_latency_ms / 1000 * (_LARGE_BATCH_WAIT if is_large else 1)
        pace.end_only = step >= Step.END_ONLY
        self.choose_model()
        self.state = "overloaded" if step else "running"
        message = f"from {was.text} to {step.text}; the queue to the model is {fill:.0%} full"
        _LOG.warning("overload: %s", message)
        self.publisher.engine("overload", message, step=int(step), name=step.text)

    def _tell_stats(self) -> None:
        names = self.config.iface
        self.publisher.stats(stats_of(self), names[0] if len(names) == 1 else UNSET)

    def _tell_service_manager(self, now_s: float) -> None:
        # READY is said once packets have been looked for.
        if now_s >= self._next_status_s and self._capture_stage.last_s > self.started_s:
            self._next_status_s = now_s + 2.0
            books = self.counters
            captured = books.capture()
            ready = "READY=1\n" if self._is_new else ""
            self._is_new = False
            notify(
                f"{ready}STATUS={books.packets_seen} packets, {captured['kernel_drops']} dropped by the kernel, "
                f"{books.predictions} flows answered, overload step {self.policy.step.text}"
            )
        if self._watchdog_s is not None and now_s >= self._next_ping_s:
            self._next_ping_s = now_s + self._watchdog_s / 4
            if self._all_moved():
                notify("WATCHDOG=1")

    def _all_moved(self) -> bool:
        within_s = self.config.stall_timeout_s
        return self.board.all_moved(
            within_s if self._watchdog_s is None else min(self._watchdog_s / 2, within_s)
        )

    def _guard(self) -> None:
        """End the process if a stage died or stands still: nobody restarts what is half alive."""
        while not self._is_stopping:
            time.sleep(_GUARD_S)
            for runner in self.runners:
                if runner.failure is not None:
                    stage = self.board.add(f"sink.{runner.name}", self.config.stall_timeout_s)
                    stage.failure = runner.failure
            if trouble := self.board.trouble():
                self._die(trouble)

    def _die(self, why: str) -> None:
        _LOG.critical("%s; netcls ends", why)
        notify(f"STATUS={why}")
        self.publisher.engine("stop", why, exit_code=EXIT_DEFECT)
        closers = [
            threading.Thread(target=partial(runner.close, _WIND_DOWN_S), daemon=True)
            for runner in self.runners
            if runner.failure is None
        ]
        for closer in closers:
            closer.start()
        end_s = time.monotonic() + _WIND_DOWN_S
        for closer in closers:
            closer.join(max(end_s - time.monotonic(), 0.0))
        os._exit(EXIT_DEFECT)

    def _n_waiting(self) -> int:
        queue = self.run.queue
        return 0 if queue is None else queue.depth + queue.ended_depth

    def _sources_text(self) -> str:
        return ", ".join(self.config.iface) if self.config.is_live else f"spool {self.config.spool}"


def _version() -> str:
    import netcls

    return netcls.__version__
