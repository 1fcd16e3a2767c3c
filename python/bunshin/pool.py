"""Pools of worker processes.

A worker that is killed or crashes costs the task it had begun, which raises `WorkerLost`; the
others are done, and another worker takes its place.
"""

import atexit
import builtins
import importlib
import itertools
import os
import sys
import threading
import time
import types
import warnings
import weakref
from multiprocessing import process as _process
from multiprocessing import util
from multiprocessing.context import ProcessError, TimeoutError

from . import _native, _start, _worker
from .context import worker_process

__all__ = ["Pool", "ThreadPool"]


# The states of a pool, as they are called in `multiprocessing.pool`.
INIT, RUN, CLOSE, TERMINATE = "INIT", "RUN", "CLOSE", "TERMINATE"


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Not before somebody asks for it: it imports half of the library, which a pool of processes does
    # without, and so do its workers.
    replaced = sys.modules.get("bunshin._own")
    own = replaced.modules["pool"] if replaced else importlib.import_module("multiprocessing.pool")
    if name == "ThreadPool":
        return globals().setdefault(name, _thread_pool(own))
    return getattr(own, name)


class WorkerLost(ProcessError):
    """The worker of a task ended before the task did.

    `pid` is the worker's, `exitcode` its exit code, or minus the signal that ended it,
    `out_of_memory` whether the system killed it for lack of memory, and `peak_memory` how many
    bytes of memory it had at its peak. `stderr` is the end of what it wrote to `sys.stderr`, and
    if it crashed, where in the program, unless `faulthandler` was in use already; the message ends
    with the lines of it that matter.
    """

    def __init__(
        self,
        text,
        pid=None,
        exitcode=None,
        out_of_memory=False,
        peak_memory=None,
        stderr="",
    ):
        super().__init__(text)
        self.pid = pid
        self.exitcode = exitcode
        self.out_of_memory = out_of_memory
        self.peak_memory = peak_memory
        self.stderr = stderr

    def __reduce__(self):
        # With what was added to it, such as notes.
        return type(self), (self.args[0],), self.__dict__


class BrokenPool(ProcessError):
    """The pool cannot have workers: its initializer fails, or they end before they are ready."""


class Cancelled(ProcessError):
    """The task never ran, as it was cancelled or its pool was terminated."""


_numbers = itertools.count(1)

#: Those of this process, and of those that it is a copy of.
_pools = weakref.WeakSet()


def living_workers():
    """The process objects of the workers of all pools of this process."""
    return [worker for pool in list(_pools) for worker in pool._pool]


# How the arguments of a task are given, as in `src/task.rs`.
ONE, TUPLE, APPLY, MAP, STARMAP = range(5)
_NAMED = (types.FunctionType, types.BuiltinFunctionType)


# The last function that was pickled by its name, and its pickle.
_last = (None, None)


def pickled(function):
    """The function as bytes, if it is nothing more: it is pickled once and not with each task."""
    global _last
    known, once = _last
    if function is known:
        return once
    once = _native.dumps_plain(function)
    if once is None:
        return function
    # One that goes by value may change.
    if isinstance(function, _NAMED) and b"cloudpickle" not in once:
        _last = (function, once)
    return once


@atexit.register
def _forget():
    # It leads to the globals of its module, whose objects are to be deleted at the end.
    global _last
    _last = (None, None)


class Pool:
    """A pool of worker processes that run tasks."""

    # Of the class, so that one that fails to be made can be deleted, however early that is.
    _state = INIT

    #: What workers are called, and whether they are daemons where their class leaves it at that.
    _kind, _are_daemons = "PoolWorker", True

    def __init__(
        self, processes=None, initializer=None, initargs=(), maxtasksperchild=None, context=None
    ):
        if context is None:
            from .context import _default_context as context
        self._ctx = context.get_context()
        if processes is None:
            processes = len(os.sched_getaffinity(0))
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None:
            if not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0:
                raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes
        # Those that are not over, also if nobody wants their results: the work is to be done.
        self._streams = set()
        #: The process objects of workers that were asked for, by their numbers.
        self._listed = {}
        self._reducing = None
        if type(self)._setup_queues is not Pool._setup_queues:
            self._reducing = importlib.import_module("bunshin._reducing").of(self)
        method = self._ctx.get_start_method()
        # What it would run is the engine's to say: overridden, it may look for a target all the same.
        process = self.Process(self._ctx, target=_worker.begin, args=())
        process.daemon = self._are_daemons
        # Whose workers are to have children has a class for them that says no.
        self._are_daemons = process.daemon
        name = process._name.partition("-")[0].replace("Process", self._kind)
        # As if each were made by a call of its own; one that takes the place of another has its name.
        *above, first = process._identity
        for _ in range(processes - 1):
            next(_process._process_counter)
        names = f"{name}-" + "".join(f"{number}:" for number in above), first
        given = {"method": method, "initializer": initializer, "initargs": tuple(initargs)}
        given["daemon"] = self._are_daemons
        number = next(_numbers)
        if method == "fork":
            _worker.leave_to_copies(number, given, process)
            preparation, begin = None, None
        else:
            number, preparation, begin = None, _start.preparation(process), given
            given["parent_name"] = process._parent_name
        util._flush_std_streams()
        own = _start.spawning(self)
        try:
            with own:
                self._native = _native.Pool(
                    processes,
                    method,
                    names,
                    _start.command(),
                    maxtasksperchild,
                    number,
                    preparation,
                    begin,
                )
        except BaseException:
            _worker.inherited.pop(number, None)
            raise
        self._number = number
        self._terminate = util.Finalize(
            self, _end, args=(self._native, number, os.getpid()), exitpriority=15
        )
        self._state = RUN
        _pools.add(self)

    @staticmethod
    def Process(ctx, *args, **kwds):
        """A process of a context's. The workers are the engine's: only what they are called, and
        whether they are daemons, is asked of one that is made by this."""
        return ctx.Process(*args, **kwds)

    def _setup_queues(self):
        """For subclasses that make queues whose reducers are to be used: see `_reducing`."""

    # Those who pickle descriptors for a child ask for these two.
    DupFd = staticmethod(_native.Descriptor)

    def duplicate_for_child(self, fd):
        return fd

    def __del__(self, _warn=warnings.warn, RUN=RUN):
        if self._state == RUN:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __repr__(self):
        cls = type(self)
        return (
            f"<{cls.__module__}.{cls.__qualname__} state={self._state} "
            f"pool_size={getattr(self, '_processes', 0)}>"
        )

    def __reduce__(self):
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    @property
    def _pool(self):
        """The workers: some programs look for them here."""
        before = self._listed
        now = {}
        for worker in self._native.workers():
            known = before.get(worker.pid)
            # Another may have the number by now.
            if known is None or not known.is_alive():
                known = worker_process(worker, self._are_daemons)
            now[worker.pid] = known
        self._listed = now
        return list(now.values())

    def _check_running(self):
        if self._state != RUN:
            raise ValueError("Pool not running")

    def _given(self, func, items):
        """A function and items for a map, as they are to be pickled."""
        if self._reducing is None:
            return func, items
        return self._reducing.function(func), map(self._reducing.argument, items)

    def _called(self, func, args, kwds):
        """A function and its arguments, as a task has them."""
        if self._reducing is not None:
            func, (args, kwds) = self._reducing.function(func), self._reducing.arguments(args, kwds)
        return pickled(func), (args, kwds), APPLY

    def _tasks(self, func, iterable, sizes, shape):
        func, iterable = self._given(func, iter(iterable))
        func = pickled(func)
        while chunk := tuple(itertools.islice(iterable, next(sizes))):
            yield func, chunk, shape

    def _sizes(self, expected):
        # As the engine's, for a map that is waited for: see `SHARES` there.
        while True:
            size = max(-(-expected // (self._processes * 4)), 1)
            yield size
            expected -= size

    def _run_map(self, func, iterable, chunksize, shape):
        self._check_running()
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)
        chunksize = 0 if chunksize is None else max(chunksize, 1)
        expected = len(iterable)
        func, iterable = self._given(func, iterable)
        results = self._native.imap(func, iterable, chunksize, expected, shape, True, True)
        first = None
        try:
            values, first = results.all(chunksize != 1)
            if first is not None:
                raise first
            return values
        finally:
            # The traceback of what is raised leads here, and must keep neither the pool nor
            # itself.
            results.close()
            first = None

    def apply(self, func, args=(), kwds={}):
        """Calls func(*args, **kwds) in a worker, and waits for the result."""
        self._check_running()
        ok, value = self._native.submit(*self._called(func, args, kwds)).get()
        if ok:
            return value
        try:
            raise value
        finally:
            # The traceback leads here, and would keep itself.
            value = None

    def map(self, func, iterable, chunksize=None):
        """Applies func to each item, and collects the results in a list."""
        return self._run_map(func, iterable, chunksize, MAP)

    def starmap(self, func, iterable, chunksize=None):
        """Like map, with items that are unpacked as arguments."""
        return self._run_map(func, iterable, chunksize, STARMAP)

    def imap(self, func, iterable, chunksize=1):
        """Like map, with results one by one, and items taken as they are needed."""
        return self._imap(func, iterable, chunksize, True)

    def imap_unordered(self, func, iterable, chunksize=1):
        """Like imap, with results as they come."""
        return self._imap(func, iterable, chunksize, False)

    def _imap(self, func, iterable, chunksize, ordered):
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        func, iterable = self._given(func, iterable)
        stream = _Stream(self._native.imap(func, iterable, chunksize, 0, MAP, ordered, False))
        self._streams.add(stream)
        return IMapIterator(self, stream, chunksize == 1)

    def _over(self, stream):
        """All that an imap gives has been taken, or is kept for it."""
        self._streams.discard(stream)
        if self._state == CLOSE and not self._streams:
            self._native.close()

    def apply_async(self, func, args=(), kwds={}, callback=None, error_callback=None):
        """Calls func(*args, **kwds) in a worker; gives a handle on the result."""
        if self._state != RUN:
            raise ValueError("Pool not running")
        result = ApplyResult(self, callback, error_callback)
        call = result._called if callback or error_callback else None
        result._task = self._native.submit(*self._called(func, args, kwds), call)
        return result

    def map_async(self, func, iterable, chunksize=None, callback=None, error_callback=None):
        """Like map, with a handle on the results."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, MAP)

    def starmap_async(self, func, iterable, chunksize=None, callback=None, error_callback=None):
        """Like starmap, with a handle on the results."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, STARMAP)

    def _map_async(self, func, iterable, chunksize, callback, error_callback, shape):
        self._check_running()
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)
        if chunksize is None:
            sizes = self._sizes(len(iterable))
        else:
            sizes = itertools.repeat(max(chunksize, 1))
        result = MapResult(self, callback, error_callback)
        result._start(list(self._tasks(func, iterable, sizes, shape)))
        return result

    def close(self):
        """Takes no more tasks; the workers end when their work is done."""
        if self._state == RUN:
            self._state = CLOSE
            # Items of an imap are still to be taken.
            if not self._streams:
                self._native.close()

    def terminate(self):
        """Ends the workers at once."""
        self._state = TERMINATE
        self._streams.clear()
        self._native.terminate()
        self._terminate.cancel()
        _worker.inherited.pop(self._number, None)

    def join(self):
        """Waits for the workers of a closed or terminated pool."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        if self._state == CLOSE:
            for stream in list(self._streams):
                stream.drain()
                self._over(stream)
        self._native.join()
        _worker.inherited.pop(self._number, None)

    def __enter__(self):
        self._check_running()
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        self.terminate()


def _end(native, number, pid):
    # In a copy of this process the workers are the parent's.
    if os.getpid() == pid:
        if util.is_exiting():
            native.terminate()
        else:
            native.let_go(False)
        _worker.inherited.pop(number, None)


class ApplyResult:
    """A handle on the result of a task."""

    # For annotations: `ApplyResult[int]`.
    __class_getitem__ = classmethod(types.GenericAlias)

    def __init__(self, pool, callback, error_callback):
        self._pool = pool
        self._callback = callback
        self._error_callback = error_callback
        #: With callbacks: set once they have been called.
        self._done = threading.Event() if callback or error_callback else None
        #: Whether it went well, and the result or the exception.
        self._outcome = None

    def _called(self, done, error):
        self._outcome = (False, error) if error is not None else done
        self._call()

    def _call(self):
        ok, value = self._outcome
        try:
            if ok and self._callback:
                self._callback(value)
            elif not ok and self._error_callback:
                self._error_callback(value)
        finally:
            self._done.set()

    def ready(self):
        """Whether the result is there."""
        if self._done is not None:
            return self._done.is_set()
        return self._outcome is not None or self._task.wait(0)

    def successful(self):
        """Whether the call raised nothing; only to be asked when it is ready."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._get(0)[0]

    def wait(self, timeout=None):
        """Waits until the result is there, for so long at most."""
        if self._done is not None:
            self._done.wait(timeout)
        elif self._outcome is None:
            self._task.wait(timeout)

    def _get(self, timeout):
        """The outcome; nothing if it is not there in that time."""
        if self._done is not None:
            return self._outcome if self._done.wait(timeout) else None
        return self._task.get(timeout)

    def get(self, timeout=None):
        """Waits for the result and gives it, or raises what the call raised."""
        done = self._get(timeout)
        if done is None:
            raise TimeoutError
        ok, value = done
        if ok:
            return value
        try:
            raise value
        finally:
            # Its traceback leads here, and from here to it, and to the results of a map.
            del self, done, value

    def cancel(self, kill=False):
        """Cancels the call if it has not begun; with `kill`, ends its worker if it has."""
        return self._task.cancel(kill)


AsyncResult = ApplyResult


def _thread_pool(own):
    class ThreadPool(own.ThreadPool):
        """A pool of threads, with the interface of pools of processes."""

        def join(self):
            """Waits for the threads of a closed pool. Calls that run while the pool is terminated
            cannot be ended, and are not waited for."""
            if self._state == TERMINATE:
                threads, self._pool = self._pool, []
                deadline = time.monotonic() + 0.2
                for thread in threads:
                    thread.join(max(0, deadline - time.monotonic()))
            super().join()

    ThreadPool.__qualname__ = ThreadPool.__name__
    return ThreadPool


class MapResult(ApplyResult):
    """A handle on the results of a map."""

    def __init__(self, pool, callback, error_callback):
        super().__init__(pool, callback, error_callback)
        self._lock = threading.Lock()

    def _start(self, tasks):
        has_calls = self._done is not None
        self._left = len(tasks)
        if has_calls and not tasks:
            self._outcome = (True, [])
            self._call()
        self._parts = [None] * len(tasks)
        submit = self._pool._native.submit
        self._tasks = [
            submit(*task, self._part(index) if has_calls else None)
            for index, task in enumerate(tasks)
        ]

    def _part(self, index):
        def call(done, error):
            with self._lock:
                self._parts[index] = (False, error) if error is not None else done
                self._left -= 1
                if self._left:
                    return
                self._join()
            self._call()

        return call

    def _join(self):
        for ok, value in self._parts:
            if not ok:
                self._outcome = (False, value)
                return
        self._outcome = (True, [item for _, part in self._parts for item in part])

    def ready(self):
        if self._done is not None:
            return self._done.is_set()
        return self._outcome is not None or all(task.wait(0) for task in self._tasks)

    def wait(self, timeout=None):
        if self._done is not None:
            self._done.wait(timeout)
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._outcome is None:
            for task in self._tasks:
                if not task.wait(None if deadline is None else max(0, deadline - time.monotonic())):
                    return

    def _get(self, timeout):
        self.wait(timeout)
        if not self.ready():
            return None
        with self._lock:
            if self._outcome is None:
                self._parts = [task.get() for task in self._tasks]
                self._join()
        return self._outcome

    def cancel(self, kill=False):
        return sum(task.cancel(kill) for task in self._tasks)


class _Stream:
    """What comes of the tasks of an imap, and what of it is kept for later."""

    def __init__(self, results):
        self._results = results
        self.ready = results.ready
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._is_over = False

    def _acquire(self, timeout):
        """Waits for its turn."""
        if self._lock.acquire(False):
            return True
        if self._process != os.getpid():
            # A thread of the parent's has it, and will not give it back here.
            raise OSError(
                "the pool belongs to the parent of this forked process; make another one here"
            )
        return self._lock.acquire(timeout=-1 if timeout is None else max(timeout, 0))

    def next(self, timeout):
        """The next outcome; `TimeoutError` if it does not come in that time."""
        if not self._acquire(timeout):
            raise builtins.TimeoutError
        try:
            if self._is_over:
                raise StopIteration
            try:
                return self._results.next(timeout)
            except StopIteration:
                self._is_over = True
                self._results.close()
                raise
        finally:
            self._lock.release()

    def drain(self):
        """Waits for all of it, and keeps it."""
        self._acquire(None)
        try:
            if not self._is_over:
                self._results.drain()
        finally:
            self._lock.release()


class IMapIterator:
    """The results of an imap."""

    def __init__(self, pool, stream, is_single):
        self._pool = pool
        self._stream = stream
        self._ready = stream.ready
        # Whether an outcome is one result, and not a list of them.
        self._is_single = is_single
        self._items = iter(())

    def __iter__(self):
        return self

    def next(self, timeout=None):
        """The next result; raises `TimeoutError` if it does not come in that time."""
        if not self._is_single:
            for item in self._items:
                return item
        while True:
            done = self._ready()
            if done is None:
                try:
                    done = self._stream.next(timeout)
                except StopIteration:
                    self._pool._over(self._stream)
                    raise
                except builtins.TimeoutError:
                    raise TimeoutError from None
            ok, value = done
            if not ok:
                raise value
            if self._is_single:
                return value
            self._items = iter(value)
            for item in self._items:
                return item

    __next__ = next


IMapUnorderedIterator = IMapIterator
