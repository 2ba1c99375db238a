"""Which thread does what: one lane for everything that is planned, one for each foreign type, one turn per handle."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from conetd.errors import DriverTimeout, Unavailable

T = TypeVar("T")
Item = TypeVar("Item")
log = logging.getLogger(__name__)

Group = Callable[[list[Any]], Sequence[Any]]
GROUP_MOST = 16  # jobs done together; more only make the first one wait


@dataclass(slots=True)
class _Entry:
    group: Group
    item: Any
    future: Future[Any] = field(default_factory=Future)


class Lane:
    """A thread that works off a queue. Jobs of one kind that wait at the same time are done together."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[_Entry | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._stopping = threading.Lock()
        self._stopped = False
        self._later: deque[Callable[[], None]] = deque()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def call(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run `function(*arguments)` in the lane, by itself."""
        return self._put(_Entry(_alone, (function, arguments)))

    def group(self, function: Callable[[list[Item]], Sequence[T | BaseException]], item: Item) -> Future[T]:
        """Run `function` in the lane on this item and those of the same function that wait with it.

        It returns a result or an exception for each item; it does not raise.
        """
        return self._put(_Entry(function, item))

    def later(self, function: Callable[[], None]) -> None:
        """Run the function once those who wait for the jobs at hand have their answer. For jobs in the lane."""
        self._later.append(function)

    def stop(self) -> None:
        """Finish what was submitted, then end the thread. What comes later is refused."""
        with self._stopping:
            self._stopped = True
            self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def retire(self) -> None:
        """End the thread as soon as it is through with what it is at, and do not wait for that."""
        with self._stopping:
            self._stopped = True
            self._queue.put(None)

    @property
    def current(self) -> bool:
        """Whether the caller runs in this lane."""
        return threading.current_thread() is self._thread

    def _put(self, entry: _Entry) -> Future[Any]:
        with self._stopping:
            if self._stopped:
                raise Unavailable("conetd is stopping")
            self._queue.put(entry)
        return entry.future

    def _run(self) -> None:
        while True:
            entry = self._queue.get()
            waiting = [entry]
            while len(waiting) < GROUP_MOST:
                try:
                    waiting.append(self._queue.get_nowait())
                except Empty:
                    break
            groups: dict[Any, list[_Entry]] = {}
            for number, one in enumerate(waiting):
                if one is not None:
                    kind = number if one.group is _alone else one.group
                    groups.setdefault(kind, []).append(one)
            for group in groups.values():
                _work_off(group)
                while self._later:
                    _try(self._later.popleft())
            if None in waiting:
                return


def _alone(items: list[Any]) -> Sequence[Any]:
    [(function, arguments)] = items
    return [function(*arguments)]


def _try(function: Callable[[], None]) -> None:
    try:
        function()
    except Exception:  # nobody waits for it any more
        log.exception("what was left for later failed")


def _work_off(group: list[_Entry]) -> None:
    try:
        results = group[0].group([one.item for one in group])
    except BaseException as err:  # the thread has to live on; whoever waits gets the error
        results = [err] * len(group)
    for entry, result in zip(group, results, strict=True):
        if isinstance(result, BaseException):
            entry.future.set_exception(result)
        else:
            entry.future.set_result(result)


class ForeignLane:
    """The thread on which the calls into one foreign driver are made, each with a deadline."""

    def __init__(self, type_: str, deadline_s: float) -> None:
        self._type = type_
        self._deadline_s = deadline_s
        self._turn = threading.Lock()
        self._lane = self._fresh()

    def call(self, method: str, function: Callable[[], T]) -> T:
        """Run the function and return its result.

        Raises DriverTimeout, naming type and method, when it has not ended in time; the lane then has a fresh
        thread, and whatever the old one still does is nobody's any more.
        """
        with self._turn:
            future = self._lane.call(function)
            try:
                return future.result(self._deadline_s)
            except FutureTimeout as err:
                if future.done():
                    return future.result()
                self._lane.retire()
                self._lane = self._fresh()
                raise DriverTimeout(f"driver {self._type}: {method} did not end within {self._deadline_s:g} s") from err

    def _fresh(self) -> Lane:
        lane = Lane(f"lane-{self._type}")
        lane.start()
        return lane

    def stop(self) -> None:
        """Wait for the call that runs, then end the thread."""
        with self._turn:
            self._lane.stop()


class Turnstile(Generic[T]):
    """Lets one job at a time through for each key, in the order they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[Hashable, deque[tuple[Callable[[], Future[Any]], Future[Any]]]] = {}

    def enter(self, key: Hashable, start: Callable[[], Future[T]]) -> Future[T]:
        """Call `start` when all earlier jobs of the key have ended; the future it returns is the job's end."""
        outer: Future[T] = Future()
        with self._lock:
            queue = self._queues.get(key)
            if queue is not None:
                queue.append((start, outer))
                return outer
            self._queues[key] = deque()
        self._begin(key, start, outer)
        return outer

    def _begin(self, key: Hashable, start: Callable[[], Future[Any]], outer: Future[Any]) -> None:
        try:
            inner = start()
        except BaseException as err:  # the next in the queue has to get its turn
            self._next(key)
            outer.set_exception(err)
            return

        def ended(done: Future[Any]) -> None:
            self._next(key)
            error = done.exception()
            if error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(done.result())

        inner.add_done_callback(ended)

    def _next(self, key: Hashable) -> None:
        with self._lock:
            queue = self._queues[key]
            if not queue:
                del self._queues[key]
                return
            start, outer = queue.popleft()
        self._begin(key, start, outer)
