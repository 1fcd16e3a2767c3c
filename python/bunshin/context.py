"""Contexts: a start method, and everything made with it."""

import os
import signal
import sys
from multiprocessing import context as _own
from multiprocessing import process, util
from multiprocessing.context import (  # noqa: F401
    AuthenticationError,
    BufferTooShort,
    ProcessError,
    TimeoutError,
    assert_spawning,
    get_spawning_popen,
    set_spawning_popen,
)

from . import _fork, _native, reduction

__all__ = ()


class AbandonedLock(ProcessError):
    """The process that held a lock has ended. Who gets this by `acquire` has the lock now."""


class LostItems(ProcessError):
    """Objects of a queue went with processes that ended before they had declared them done."""

    def __init__(self, count):
        super().__init__(count)
        #: How many.
        self.count = count

    def __str__(self):
        return f"{self.count} objects were lost with processes that ended"


def is_fork(ctx):
    """Whether what is made with this context is for forked children."""
    return (ctx or _default_context).get_start_method() == "fork"


def assert_sharing(obj):
    """Refuses what is not on its way to a child, or was made for forked children only."""
    assert_spawning(obj)
    # It would work here. It is an error as in `multiprocessing`, which documents it as one.
    if obj._is_fork_ctx:
        raise RuntimeError(
            "A SemLock created in a fork context is being shared with a process that is started "
            "otherwise; make the object with the context of that process"
        )


#: Whether this process is a worker: it may have children, daemon as it is.
is_worker = False


class _Popen:
    """A child that is started by the engine."""

    def __init__(self, process_obj):
        from . import _start

        util._flush_std_streams()
        with _start.spawning(self):
            preparation = _start.preparation(process_obj)
            self._child = _native.start(self.method, _start.command(), preparation, process_obj)
        self.pid = self._child.pid
        self.sentinel = self._child.sentinel
        self.returncode = None
        self._fds = ()
        self.finalizer = util.Finalize(self, self._child.close)

    # Those who pickle descriptors for a child ask for these two.
    DupFd = staticmethod(_native.Descriptor)

    def duplicate_for_child(self, fd):
        return fd

    def poll(self, flag=os.WNOHANG):
        if self.returncode is None:
            try:
                self.returncode = self._child.wait(0 if flag == os.WNOHANG else None)
            except OSError:
                # Somebody else has collected it, and knows how it ended.
                return None
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            try:
                self.returncode = self._child.wait(timeout)
            except OSError:
                return None
        return self.returncode

    def _send_signal(self, sig):
        if self.returncode is None:
            try:
                os.kill(self.pid, sig)
            except ProcessLookupError:
                pass
            except OSError:
                if self.wait(timeout=0.1) is None:
                    raise

    def interrupt(self):
        self._send_signal(signal.SIGINT)

    def terminate(self):
        self._send_signal(signal.SIGTERM)

    def kill(self):
        self._send_signal(signal.SIGKILL)

    def close(self):
        if self.finalizer is not None:
            self.finalizer()


class _SpawnPopen(_Popen):
    method = "spawn"


class _ForkServerPopen(_Popen):
    method = "forkserver"


class _WorkerPopen(_Popen):
    """What is behind the process object of a pool's worker, which the pool has started."""

    def __init__(self, worker):
        self._child = worker
        self.pid = worker.pid
        self.sentinel = worker.sentinel
        self.returncode = None

    def _send_signal(self, sig):
        try:
            # Its number may be another's by now, the descriptor not.
            signal.pidfd_send_signal(self.sentinel, sig)
        except ProcessLookupError:
            pass

    def close(self):
        self._child = None


class _InChild:
    """What a child does first, and what a pool's worker may do."""

    def start(self):
        config = process.current_process()._config
        if not (is_worker and config.get("daemon")):
            return super().start()
        # It is ended with its parent, and its children with it.
        config["daemon"] = False
        try:
            super().start()
        finally:
            config["daemon"] = True

    def interrupt(self):
        """Sends the child an interrupt, as Ctrl-C does."""
        self._check_closed()
        self._popen._send_signal(signal.SIGINT)

    def _bootstrap(self, parent_sentinel=None):
        _native.end_after_parent(self._parent_pid)
        if self._start_method is not None:
            _force_start_method(self._start_method)
        return super()._bootstrap(parent_sentinel=parent_sentinel)


class Process(_InChild, _own.Process):
    """A child process that runs a function, or `run` of a subclass."""

    @staticmethod
    def _Popen(process_obj):
        return _default_context.get_context().Process._Popen(process_obj)


class ForkProcess(_InChild, _own.ForkProcess):
    """A process that is a copy of its parent."""

    @staticmethod
    def _Popen(process_obj):
        return _fork.Popen(process_obj)


class SpawnProcess(_InChild, _own.SpawnProcess):
    """A process that starts a new interpreter."""

    @staticmethod
    def _Popen(process_obj):
        return _SpawnPopen(process_obj)


class ForkServerProcess(_InChild, _own.ForkServerProcess):
    """A process that is a copy of a small server."""

    @staticmethod
    def _Popen(process_obj):
        return _ForkServerPopen(process_obj)


def worker_process(worker, is_daemon):
    """A process object for a worker of a pool's, which is none of the children that this process
    waits for at its end."""
    parent = process.current_process()
    # Not by a call, which would take a number that is another child's.
    made = PoolProcess.__new__(PoolProcess)
    made.__dict__.update(
        _identity=identity(worker.name),
        _config=dict(parent._config, daemon=is_daemon),
        _parent_pid=os.getpid(),
        _parent_name=parent._name,
        _popen=_WorkerPopen(worker),
        _sentinel=worker.sentinel,
        _closed=False,
        _target=None,
        _args=(),
        _kwargs={},
        _name=worker.name,
    )
    return made


def identity(name):
    """The numbers in the name of a worker: those of the processes above it, and its own."""
    return tuple(map(int, name.rpartition("-")[2].split(":")))


class PoolProcess(_InChild, _own.Process):
    """A worker of a pool, as `active_children` gives it: if it is ended, its pool has another."""

    _start_method = None

    @staticmethod
    def _Popen(process_obj):
        raise AssertionError("a pool starts its workers")


def _active_children():
    """The process objects of the children that live, the workers of pools among them."""
    children = process.active_children()
    # Without that module there are no pools.
    pool = sys.modules.get(f"{__package__}.pool")
    return children if pool is None else children + pool.living_workers()


class _Methods:
    """What this package brings of its own."""

    active_children = staticmethod(_active_children)

    def freeze_support(self):
        """Has a frozen program be a child where it was started as one."""
        from ._start import freeze_support

        freeze_support()

    def Pipe(self, duplex=True):
        """Returns two connected ends of a pipe."""
        from .connection import Pipe

        return Pipe(duplex)

    def Lock(self):
        """Returns a lock."""
        from .synchronize import Lock

        return Lock(ctx=self.get_context())

    def RLock(self):
        """Returns a lock that its holder may acquire again."""
        from .synchronize import RLock

        return RLock(ctx=self.get_context())

    def Condition(self, lock=None):
        """Returns a condition."""
        from .synchronize import Condition

        return Condition(lock, ctx=self.get_context())

    def Semaphore(self, value=1):
        """Returns a semaphore."""
        from .synchronize import Semaphore

        return Semaphore(value, ctx=self.get_context())

    def BoundedSemaphore(self, value=1):
        """Returns a semaphore that never has more permits than at first."""
        from .synchronize import BoundedSemaphore

        return BoundedSemaphore(value, ctx=self.get_context())

    def Event(self):
        """Returns an event."""
        from .synchronize import Event

        return Event(ctx=self.get_context())

    def Barrier(self, parties, action=None, timeout=None):
        """Returns a barrier."""
        from .synchronize import Barrier

        return Barrier(parties, action, timeout, ctx=self.get_context())

    def Queue(self, maxsize=0):
        """Returns a queue."""
        from .queues import Queue

        return Queue(maxsize, ctx=self.get_context())

    def JoinableQueue(self, maxsize=0):
        """Returns a queue that one can wait for until all is done."""
        from .queues import JoinableQueue

        return JoinableQueue(maxsize, ctx=self.get_context())

    def SimpleQueue(self):
        """Returns a queue with the fewest questions."""
        from .queues import SimpleQueue

        return SimpleQueue(ctx=self.get_context())

    def Manager(self):
        """Returns a manager whose server has started; it makes shared objects."""
        from .managers import SyncManager

        manager = SyncManager(ctx=self.get_context())
        manager.start()
        return manager

    def Pool(self, processes=None, initializer=None, initargs=(), maxtasksperchild=None):
        """Returns a pool of worker processes."""
        from .pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, self.get_context())

    def RawValue(self, typecode_or_type, *args):
        """Returns a ctypes object in shared memory."""
        from .sharedctypes import RawValue

        return RawValue(typecode_or_type, *args)

    def RawArray(self, typecode_or_type, size_or_initializer):
        """Returns a ctypes array in shared memory."""
        from .sharedctypes import RawArray

        return RawArray(typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type, *args, lock=True):
        """Returns a value in shared memory, with a lock unless `lock` is false."""
        from .sharedctypes import Value

        return Value(typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type, size_or_initializer, *, lock=True):
        """Returns an array in shared memory, with a lock unless `lock` is false."""
        from .sharedctypes import Array

        return Array(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    @property
    def reducer(self):
        """How objects are pickled for other processes."""
        return globals().get("reduction")

    @reducer.setter
    def reducer(self, reduction):
        globals()["reduction"] = reduction


class ForkContext(_Methods, _own.ForkContext):
    Process = ForkProcess


class SpawnContext(_Methods, _own.SpawnContext):
    Process = SpawnProcess


class ForkServerContext(_Methods, _own.ForkServerContext):
    Process = ForkServerProcess


BaseContext = _own.BaseContext

_concrete = {
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}


class DefaultContext(_Methods, _own.DefaultContext):
    """The context of those who choose none."""

    Process = Process

    def get_context(self, method=None):
        if method is None:
            if self._actual_context is None:
                self._actual_context = self._default_context
            return self._actual_context
        try:
            context = _concrete[method]
        except KeyError:
            raise ValueError(f"cannot find context for {method!r}") from None
        context._check_available()
        return context

    def set_start_method(self, method, force=False):
        super().set_start_method(method, force)
        # What the interpreter makes by itself, such as a manager's server, goes along.
        _own._default_context.set_start_method(method, force=True)


# Others have start methods of their own, such as loky in its workers.
_given = _own._default_context.get_context().get_start_method()
_default_context = DefaultContext(_concrete.get(_given, _concrete["spawn"]))


def _force_start_method(method):
    """Gives this process that start method, whatever it had."""
    _default_context._actual_context = _concrete[method]
    _own._force_start_method(method)


def _has_start_method(method):
    """Whether this process has that start method already; none is one that it has."""
    return method is None or (
        _default_context._actual_context is _concrete[method]
        and _own._default_context._actual_context is _own._concrete_contexts[method]
    )


def __getattr__(name):
    return getattr(_own, name)
