"""The executor interface, `concurrent.futures.Executor`, over the pool.

A worker that is killed or crashes costs the task it had begun, whose future raises `TaskLost`,
a `BrokenProcessPool` and a `WorkerLost`; the executor goes on.
"""

import collections
import itertools
import logging
import os
import sys
import threading
import time
import weakref
from concurrent.futures import Executor, Future, process
from concurrent.futures.process import BrokenProcessPool

from .pool import (
    APPLY,
    STARMAP,
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


class _Future(Future):
    """A future that can take its task back."""

    _task = None

    def cancel(self):
        """Cancels the call if it has not begun."""
        if self.cancelled():
            return True
        if self._task is None or not self._task.cancel(False):
            return False
        self._forget()
        return True

    def _forget(self):
        # Twice is once: the pool says by itself that the task was cancelled, too.
        with self._condition:
            if self.done():
                return
            super().cancel()
            if self.cancelled():
                self.set_running_or_notify_cancel()


class _Crew:
    """The pool of an executor, which outlives it until its work is done."""

    def __init__(self, pool):
        self.pool = pool
        #: Those that are not done, in order.
        self.futures = {}
        #: Why there can be no workers.
        self.broken = None

    def submit(self, task):
        future = _Future()
        self.futures[future] = None

        def call(done, error):
            self.futures.pop(future, None)
            try:
                self.settle(future, done, error)
            except Exception:
                # It was settled otherwise.
                pass

        try:
            future._task = self.pool._native.submit(*task, call)
        except BaseException:
            self.futures.pop(future, None)
            raise
        return future

    def settle(self, future, done, error):
        if error is None:
            ok, value = done
            if ok:
                future.set_result(value)
            else:
                future.set_exception(_raised(value))
        elif isinstance(error, Cancelled):
            future._forget()
        elif isinstance(error, BrokenPool):
            self.broken = str(error)
            future.set_exception(BrokenInitializer(self.broken))
        elif isinstance(error, WorkerLost):
            lost = TaskLost(error.args[0])
            lost.__dict__.update(error.__dict__)
            future.set_exception(lost)
        elif isinstance(error, MemoryError):
            future.set_exception(error)
        else:
            future.set_exception(_unreadable("result", error))

    def close(self):
        self.pool.close()
        _draining.add(self)

    def join(self):
        self.pool.join()
        _draining.discard(self)


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
    # In a copy of this process the workers are the parent's.
    global _draining, _executors
    _draining = set()
    for executor in list(_executors):
        executor._disown()
    _executors = weakref.WeakSet()


os.register_at_fork(after_in_child=_begin_again)


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

    def _disown(self):
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
                if not crew.futures:
                    crew.join()
            context = _ours(self._mp_context)
            pool = Pool(self._max_workers, *self._begin, self._max_tasks, context)
            self._crew = _Crew(pool)
            self._finish = weakref.finalize(self, _Crew.close, self._crew)
            self._finish.atexit = False
        if self._crew.broken:
            raise BrokenInitializer(self._crew.broken)
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
        items = zip(*iterables)
        once = _pickled(fn)
        chunks = iter(lambda: tuple(itertools.islice(items, chunksize)), ())
        ahead = None if buffersize is None else -(-buffersize // chunksize)
        futures = collections.deque(
            self._submit((once, chunk, STARMAP)) for chunk in itertools.islice(chunks, ahead)
        )
        # A function of its own, so that all of this happens now and not when it is first asked.
        return _results(self, once, chunks, futures, deadline)

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
            for future in list(crew.futures)[self._max_workers :]:
                future.cancel()
        self._finish.detach()
        crew.close()
        if wait:
            crew.join()

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
        futures = list(crew.futures)
        for future in futures:
            if not future.done():
                try:
                    future.set_exception(BrokenProcessPool("the workers were terminated"))
                except Exception:
                    # It was settled meanwhile.
                    pass
        crew.pool.terminate()
        crew.join()


def _results(executor, once, chunks, futures, deadline):
    try:
        while futures:
            left = None if deadline is None else deadline - time.monotonic()
            values = collections.deque(futures[0].result(left))
            futures.popleft()
            for chunk in itertools.islice(chunks, 1):
                futures.append(executor._submit((once, chunk, STARMAP)))
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
