"""Several captures at once, each in its own process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_any

from capture.errors import DataError
from netcls.datasets.shard import ShardFacts, ShardTask, write_shard


def write_shards(tasks: Sequence[ShardTask], workers: int) -> Iterator[tuple[int, ShardFacts]]:
    """Make shards; each as soon as it is done, with its number.

    Workers end at once when this process ends, however it does; what they were writing is then incomplete and has no
    name yet.

    Args:
        tasks: what to make.
        workers: processes; 1: this one.

    Raises:
        DataError: a shard cannot be written, or a worker was killed.
    """
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield task.number, write_shard(task)
        return
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=_start_worker)
    try:
        yield from _in_pool(pool, tasks, workers)
    except BrokenProcessPool:
        raise DataError(
            "a worker was killed, perhaps for want of memory; give fewer --workers and run the command again"
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_pool(
    pool: ProcessPoolExecutor, tasks: Sequence[ShardTask], workers: int
) -> Iterator[tuple[int, ShardFacts]]:
    """A bounded number is handed over at a time: tasks carry the rows of their table."""
    waiting = iter(tasks)
    running: dict[Future[ShardFacts], int] = {}
    while True:
        while len(running) < 2 * workers and (task := next(waiting, None)) is not None:
            running[pool.submit(write_shard, task)] = task.number
        if not running:
            return
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            number = running.pop(done)
            yield number, done.result()


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; without a parent there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for_any([sentinel])
    os._exit(1)
