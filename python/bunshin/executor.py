"""The executor interface, `concurrent.futures.Executor`, over the pool.

A worker that is killed or crashes costs the task it had begun, whose future raises `TaskLost`,
a `BrokenProcessPool` and a `WorkerLost`; the executor goes on.
"""

import collections
import contextlib
import itertools
import logging
import os
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, Executor, Future, process
from concurrent.futures._base import (
    CANCELLED,
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    PENDING,
    RUNNING,
)
from concurrent.futures.process import BrokenProcessPool

from . import _native, _worker
from .pool import (
    APPLY,
    CLOSE,
    MAP,
    ONE,
    STARMAP,
    TUPLE,
    BrokenPool,
    Cancelled,
    MaybeEncodingError,
    Pool,
    RemoteTraceback,
    WorkerLost,
    pickled,
)

__all__ = ["BrokenInitializer", "ProcessPoolExecutor", "TaskLost", "TaskUnreadable"]


class TaskLost(WorkerLost, BrokenProcessPool):
    """The worker of a task ended before the task did; the executor has another by now."""


class BrokenInitializer(BrokenPool, BrokenProcessPool):
    """The executor cannot have workers: its initializer fails, or they end before they are
    ready."""


class TaskUnreadable(BrokenProcessPool):
    """A task, or its result, cannot be unpickled; its cause says why."""


def _initialize(initializer, initargs):
    """Runs in each worker first."""
    try:
        initializer(*initargs)
    except BaseException:
        logging.getLogger("concurrent.futures").critical(
            "Exception in initializer:", exc_info=True
        )
        raise


#: Held while it is noted how a call has failed, so that there is one exception for it.
_settling = threading.Lock()


class _Future(Future):
    """The future of a task, which finds out what became of that when it is asked.

    Who waits for the result takes it from the pool, in the thread that waits. Those who want to be
    told (callbacks, and the waiters of `wait` and `as_completed`) are told by the thread of the
    executor's relay, which is there from the first of them on. What that takes, such as a condition,
    is made when it is wanted.
    """

    #: The state, once it is final.
    _known = None
    _result = None
    _exception = None
    #: Whether the relay has it, whether the waiters have been told, and the callbacks called.
    _is_watched = False
    _is_told = False
    _is_called = False

    def __init__(self, crew, task):
        self._crew = crew
        self._task = task

    # What the interpreter's own functions for futures look at.

    @property
    def _state(self):
        if self._known is None:
            outcome = self._task.outcome(0)
            if outcome is None:
                return PENDING
            self._settle(outcome)
        if not self._is_told:
            # Who sees it as final, and then adds a waiter, does not expect that to be told.
            with self._condition:
                if not self._is_told:
                    self._tell_waiters()
        return self._known

    @_state.setter
    def _state(self, state):
        # Somebody settles it by hand.
        self._known = state
        self._is_told = self._is_called = True

    @property
    def _condition(self):
        own = self.__dict__
        return own.get("_own_condition") or own.setdefault("_own_condition", threading.Condition())

    @property
    def _waiters(self):
        self._watch()
        return self.__dict__.setdefault("_own_waiters", [])

    @property
    def _done_callbacks(self):
        self._watch()
        return self.__dict__.setdefault("_own_callbacks", [])

    def _watch(self):
        with self._condition:
            if self._is_watched or self._is_told:
                return
            self._is_watched = True
        self._crew.watch(self)

    def _settle(self, outcome):
        is_good, value = outcome
        if is_good:
            self._result = value
            self._known = FINISHED
            return
        with _settling:
            if self._known is None:
                error = self._crew.verdict(is_good, value)
                self._exception = error
                self._known = CANCELLED_AND_NOTIFIED if error is None else FINISHED

    def _await(self, timeout):
        outcome = self._task.outcome(timeout)
        if outcome is None:
            raise TimeoutError()
        if self._known is None:
            self._settle(outcome)

    def _tell(self):
        """Tells those who want to know that this is done, once."""
        if self._known is None:
            try:
                self._await(None)
            except BaseException as error:
                # The pool can tell nothing any more.
                self._exception = error
                self._known = FINISHED
        with self._condition:
            if not self._is_told:
                self._tell_waiters()
            if self._is_called:
                return
            self._is_called = True
        self._invoke_callbacks()

    def _tell_waiters(self):
        self._is_told = True
        for waiter in self._waiters:
            if self._known != FINISHED:
                waiter.add_cancelled(self)
            elif self._exception is not None:
                waiter.add_exception(self)
            else:
                waiter.add_result(self)
        self._condition.notify_all()

    def cancel(self):
        """Cancels the call if it has not begun."""
        # The relay's thread learns of it at once, and waits for this: those who are to be told have
        # been when this returns.
        with self._condition:
            if self._known is not None or not self._task.cancel(False):
                # By now, or in another way.
                return self.cancelled()
            with _settling:
                self._known = CANCELLED_AND_NOTIFIED
            if not self._is_told:
                self._tell_waiters()
            is_to_call = not self._is_called
            self._is_called = True
        if is_to_call:
            self._invoke_callbacks()
        return True

    def cancelled(self):
        """Whether the call was cancelled."""
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self):
        """Whether a worker is at the call."""
        return self._state == RUNNING or self._known is None and self._task.has_begun()

    def done(self):
        """Whether the call was cancelled or has ended."""
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED)

    def result(self, timeout=None):
        """Waits for the call, and gives what it has returned or raises what it has raised."""
        if self._known is None:
            self._await(timeout)
        if self._known != FINISHED:
            raise CancelledError()
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                # The traceback leads here, and would keep it.
                self = None
        return self._result

    def exception(self, timeout=None):
        """Waits for the call, and gives what it has raised, or nothing."""
        if self._known is None:
            self._await(timeout)
        if self._known != FINISHED:
            raise CancelledError()
        return self._exception


def _relay(line):
    """What the thread of a relay does."""
    while futures := line.next():
        # Those that are told may go while the next ones are waited for.
        futures.reverse()
        while futures:
            futures.pop()._tell()


class _Crew:
    """The pool of an executor, which outlives it until its work is done."""

    def __init__(self, pool):
        self.pool = pool
        self._native = pool._native
        self._lock = threading.Lock()
        #: There once somebody wants to be told of a future.
        self._line = None
        self._thread = None
        #: Why there can be no workers.
        self._broken = None
        #: Whether its workers were terminated by whoever has the executor.
        self.is_ended = False

    def submit(self, task):
        return _Future(self, self._native.submit(*task))

    def watch(self, future):
        if self._line is None:
            with self._lock:
                if self._line is None:
                    line = _native.Relay()
                    # It must keep nobody's process from ending; who ends in order waits for it.
                    thread = threading.Thread(
                        target=_relay, args=(line,), name="bunshin-futures", daemon=True
                    )
                    thread.start()
                    self._thread = thread
                    self._line = line
        self._line.watch(future._task, future)

    def verdict(self, is_good, error):
        """The exception of a call that has not given a result; nothing if it was cancelled."""
        if is_good is not None:
            return _raised(error)
        if isinstance(error, Cancelled):
            if self.is_ended:
                return BrokenProcessPool("the workers were terminated")
            return None
        if isinstance(error, BrokenPool):
            self._broken = str(error)
            return BrokenInitializer(self._broken)
        if isinstance(error, WorkerLost):
            if self.is_ended:
                return BrokenProcessPool("the workers were terminated")
            lost = TaskLost(error.args[0])
            lost.__dict__.update(error.__dict__)
            return lost
        if isinstance(error, MemoryError):
            return error
        return _unreadable("result", error)

    @property
    def known_broken(self):
        """Why there can be no workers, as far as somebody has seen it."""
        return self._broken

    @property
    def broken(self):
        """Why there can be no workers, if that is so by now."""
        if self._broken is None:
            self._broken = self._native.broken()
        return self._broken

    def is_idle(self):
        return not self._native.has_pending()

    def close(self):
        self.pool.close()
        _draining.add(self)

    def let_go(self):
        """As `close`, for an executor that nobody has any more, without waiting for anybody."""
        self.pool._state = CLOSE
        self._native.let_go(True)
        _draining.add(self)

    def end(self):
        """Ends the workers, whatever they do."""
        self.is_ended = True
        self.pool.terminate()
        self.join()

    def join(self):
        self.pool.join()
        _draining.discard(self)
        with self._lock:
            line, thread = self._line, self._thread
        if line is not None:
            line.end()
            # A callback may be what waits for it.
            if thread is not threading.current_thread():
                thread.join()


def _raised(error):
    """What a task raised, as the interpreter's executor gives it."""
    if isinstance(error, MaybeEncodingError):
        return getattr(error, "raised", error)
    if getattr(error, "is_of_message", False):
        return _unreadable("task", error)
    if isinstance(error.__cause__, RemoteTraceback):
        error.__cause__ = process._RemoteTraceback(error.__cause__.tb)
    return error


def _unreadable(what, error):
    unreadable = TaskUnreadable(f"the {what} cannot be unpickled: {error!r}")
    unreadable.__cause__ = error
    return unreadable


#: What is closed, and may have work to do.
_draining = set()
_executors = weakref.WeakSet()
_is_ending = False


def _at_exit():
    """What was submitted is done before the interpreter ends."""
    global _is_ending
    _is_ending = True
    # An interrupt is not for the workers to handle, and nobody waits for what they do then.
    is_interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
    for executor in list(_executors):
        executor.shutdown(wait=False)
    for crew in list(_draining):
        if is_interrupted:
            crew.pool.terminate()
        crew.join()


# Before threads are joined and pools are terminated.
threading._register_atexit(_at_exit)


def _begin_again():
    # In a copy of this process the workers are the parent's. So are the threads that may have
    # held a lock.
    global _draining, _executors, _settling
    _settling = threading.Lock()
    _draining = set()
    for executor in list(_executors):
        executor._disown()
    _executors = weakref.WeakSet()


os.register_at_fork(after_in_child=_begin_again)


class _Workers(Pool):
    # As those of `concurrent.futures` are.
    _kind, _are_daemons = "Process", False


class ProcessPoolExecutor(Executor):
    """Runs calls in worker processes."""

    def __init__(
        self,
        max_workers=None,
        mp_context=None,
        initializer=None,
        initargs=(),
        *,
        max_tasks_per_child=None,
    ):
        if max_workers is None:
            max_workers = len(os.sched_getaffinity(0)) or 1
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if mp_context is None:
            from .context import _default_context

            method = "spawn" if max_tasks_per_child is not None else None
            mp_context = _default_context.get_context(method)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            if mp_context.get_start_method(allow_none=False) == "fork":
                raise ValueError("max_tasks_per_child does not go with the start method fork")
        self._max_workers = max_workers
        self._mp_context = mp_context
        self._begin = (None, ())
        if initializer is not None:
            self._begin = (_initialize, (initializer, tuple(initargs)))
        self._max_tasks = max_tasks_per_child
        self._lock = threading.Lock()
        self._is_shut_down = False
        self._crew = None
        self._finish = None
        _executors.add(self)

    @property
    def _broken(self):
        """Why there can be no workers, if so."""
        return False if self._crew is None else self._crew.broken or False

    @property
    def _processes(self):
        """The workers by their process ids: some programs look for them here."""
        crew = self._crew
        return {} if crew is None else {worker.pid: worker for worker in crew.pool._pool}

    def _disown(self):
        self._lock = threading.Lock()
        if self._crew is not None:
            self._crew._lock = threading.Lock()
        if self._finish is not None:
            self._finish.detach()
        self._is_shut_down = True

    def _open(self):
        """The pool, which is started when it is first wanted. The caller holds the lock."""
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_ending:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._crew is None:
            for crew in list(_draining):
                if crew.is_idle():
                    crew.join()
            context = _ours(self._mp_context)
            pool = _Workers(self._max_workers, *self._begin, self._max_tasks, context)
            self._crew = _Crew(pool)
            self._finish = weakref.finalize(self, _Crew.let_go, self._crew)
            self._finish.atexit = False
        if self._crew.known_broken:
            raise BrokenInitializer(self._crew.known_broken)
        return self._crew

    def submit(self, fn, /, *args, **kwargs):
        """Has fn(*args, **kwargs) called in a worker; gives a future."""
        return self._submit((_pickled(fn), (args, kwargs), APPLY))

    def _submit(self, task):
        with self._lock:
            crew = self._open()
        try:
            return crew.submit(task)
        except Exception as error:
            # What cannot be pickled is the future's to say.
            future = Future()
            future.set_exception(error)
            return future

    def map(self, fn, *iterables, timeout=None, chunksize=1, buffersize=None):
        """Applies fn to items of each of the iterables, and gives the results in order.

        The items are taken and submitted at once, or with `buffersize` so many of them ahead
        of the results that are taken.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None:
            if not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")
            if buffersize < 1:
                raise ValueError("buffersize must be None or > 0")
        deadline = None if timeout is None else time.monotonic() + timeout
        is_single = len(iterables) == 1
        items = iter(iterables[0]) if is_single else zip(*iterables)
        chunks = iter(lambda: tuple(itertools.islice(items, chunksize)), ())
        is_own = type(self).submit is ProcessPoolExecutor.submit
        if is_own and buffersize is None:
            if chunksize == 1:
                shape, tasks = ONE if is_single else TUPLE, list(items)
            else:
                shape, tasks = MAP if is_single else STARMAP, list(chunks)
            with self._lock:
                crew = self._open()
            calls = crew.pool._native.submit_all(_pickled(fn), tasks, shape)
            return _in_order(crew, calls, deadline, chunksize > 1)
        loop = _worker.map_chunk if is_single else _worker.starmap_chunk
        if is_own:
            once = _pickled(fn)

            def submit(chunk):
                return self._submit((once, chunk, MAP if is_single else STARMAP))

        else:

            def submit(chunk):
                return self.submit(loop, fn, chunk)

        ahead = None if buffersize is None else -(-buffersize // chunksize)
        futures = collections.deque(map(submit, itertools.islice(chunks, ahead)))
        # A function of its own, so that all of this happens now and not when it is first asked.
        return _results(submit, chunks, futures, deadline)

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Takes no more calls, and waits for those there are; `cancel_futures` drops those that
        have not begun."""
        with self._lock:
            self._is_shut_down = True
            crew = self._crew
        if crew is None:
            return
        if cancel_futures:
            # What the workers take next counts as begun, whether or not they are ready for it.
            crew.pool._native.cancel_pending(self._max_workers)
        self._finish.detach()
        crew.close()
        if wait:
            crew.join()
        elif not _is_ending:
            # Else its memory would be kept until somebody looks whether the work is done.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=crew.join, name="bunshin-drain", daemon=False).start()

    def __exit__(self, exc_type, exc_val, exc_tb):
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            self._end()
        else:
            self.shutdown()
        return False

    def terminate_workers(self):
        """Ends the workers, whatever they do; what they had to do is lost."""
        self._end()

    def kill_workers(self):
        """As `terminate_workers`: a pool's workers are always killed."""
        self._end()

    def _end(self):
        with self._lock:
            self._is_shut_down = True
            crew = self._crew
        if crew is None:
            return
        self._finish.detach()
        crew.end()


def _in_order(crew, calls, deadline, are_chunks):
    """The results of a map's calls."""
    error = None
    try:
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            taken = calls.next(left)
            if taken is None:
                raise TimeoutError()
            values, failed = taken
            if not values and failed is None:
                return
            values.reverse()
            while values:
                if not are_chunks:
                    # Nothing of it is kept here.
                    yield values.pop()
                    continue
                chunk = values.pop()
                chunk.reverse()
                while chunk:
                    yield chunk.pop()
            if failed is not None:
                error = crew.verdict(*failed)
                raise CancelledError() if error is None else error
    finally:
        # The traceback leads here, and would keep the error.
        error = failed = taken = None
        calls.cancel()


def _results(submit, chunks, futures, deadline):
    try:
        while futures:
            left = None if deadline is None else deadline - time.monotonic()
            values = collections.deque(futures[0].result(left))
            futures.popleft()
            for chunk in itertools.islice(chunks, 1):
                futures.append(submit(chunk))
            while values:
                yield values.popleft()
    finally:
        for future in futures:
            future.cancel()


def _pickled(function):
    try:
        return pickled(function)
    except Exception:
        # It is tried again with its task, whose future says why it cannot be.
        return function


def _ours(context):
    """A context of this package's with that start method."""
    from .context import _default_context, _Methods

    if isinstance(context, _Methods):
        return context
    return _default_context.get_context(context.get_start_method())
