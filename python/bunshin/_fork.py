"""Children that are copies of this process.

What their start costs is memory: after a fork each page that either process writes to is copied,
and to use an object is to write to it. So the parent has one descriptor of a child, and the child
imports nothing.
"""

import atexit
import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from multiprocessing import popen_fork, process, util

from . import _native

__all__ = ()

#: Whether it is left to the handlers registered in a child to end what is its own.
_LEAVES_END_TO_HANDLERS = sys.version_info >= (3, 13)

#: Whether a fork may leave out the way to the resource tracker.
_MAY_LOSE_TRACKER = sys.version_info >= (3, 13)

#: The process that was started here last, of this one and those above it: it closes what it has of
#: pipes before it ends.
forked = None


class Popen(popen_fork.Popen):
    """A child, as its parent has it; the sentinel is a handle on the process itself."""

    _has_sentinel = False

    def _launch(self, process_obj):
        self._owner = process_obj._parent_pid
        ahead = _look_ahead(process_obj)
        # An interrupt that came in the middle would have the child go on as its parent does.
        _native.hold_interrupts()
        pid = None
        try:
            if _MAY_LOSE_TRACKER:
                self.pid = pid = _fork_with_tracker()
            else:
                self.pid = pid = os.fork()
            if pid == 0:
                _be(process_obj, ahead)
            self.sentinel = _watch(pid)
            self._has_sentinel = True
        except OSError:
            if pid is not None:
                # Nobody is going to have it.
                os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
            raise
        finally:
            if os.getpid() != self._owner:
                # What the handler of another signal raised, before `_be` could catch it.
                os._exit(1)
            _native.release_interrupts()

    def __del__(self, getpid=os.getpid, close=os.close):
        # In a copy of this process the number may be somebody else's.
        if self._has_sentinel and getpid() == self._owner:
            close(self.sentinel)

    def close(self):
        self.__del__()
        self._has_sentinel = False


def _fork_with_tracker():
    """Forks; the child keeps the way to the interpreter's resource tracker, which newer interpreters
    otherwise close in it."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    intent = getattr(tracker, "_fork_intent", None)
    if intent is None:
        return os.fork()
    intent.preserve_fd = True
    try:
        return os.fork()
    finally:
        intent.preserve_fd = False


def _watch(pid):
    """A descriptor that is readable once that process has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        # A parent that is gone, or a child that nobody has to collect (`SIG_IGN` for `SIGCHLD`).
        sentinel, writer = os.pipe()
        os.close(writer)
        return sentinel


class _NoInput(io.RawIOBase):
    """Nothing to be read, like the null device, which is opened for those only who want a number."""

    name = os.devnull
    mode = "rb"
    _fd = None

    def readable(self):
        return True

    def readinto(self, buffer):
        self._checkClosed()
        return 0

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        self._checkClosed()
        return 0

    def fileno(self):
        self._checkClosed()
        if self._fd is None:
            self._fd = os.open(os.devnull, os.O_RDONLY)
        return self._fd


#: Modules that this process, or one that it is a copy of, has begun to import once more.
_imported_again: set[str] = set()


def _release_imports(locks):
    """Has a copy of this process import anew what another thread was importing when it was made.

    That thread holds the modules' locks, and is not here to give them back. What this process is
    there to run it goes on with as it was then.
    """
    own = threading.get_ident()
    in_use = None
    for name, reference in list(locks.items()):
        lock = reference()
        if lock is not None and lock.owner == own:
            if lock.lock.acquire(False):
                lock.lock.release()
            else:
                # Another thread was about to wait for it.
                lock.lock = threading.RLock() if sys.version_info >= (3, 12) else threading.Lock()
            continue
        del locks[name]
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if not getattr(spec, "_initializing", False):
            continue
        if in_use is None:
            in_use = _modules_in_use()
        if name in in_use or name in _imported_again:
            spec._initializing = False
        else:
            # Once: it may be what starts processes.
            _imported_again.add(name)
            del sys.modules[name]


def _modules_in_use():
    """The modules whose code this thread is running, or is to run in a child."""
    names = set()
    frame = sys._getframe()
    while frame is not None:
        names.add(frame.f_globals.get("__name__"))
        if frame.f_code is Popen._launch.__code__:
            started = frame.f_locals["process_obj"]
            names.add(type(started).__module__)
            names.add(getattr(getattr(started, "_target", None), "__module__", None))
        frame = frame.f_back
    return names


def _watch_imports():
    # Not documented: where there is no such thing, a copy may wait for ever, as elsewhere.
    locks = getattr(importlib._bootstrap, "_module_locks", None)
    if isinstance(locks, dict):
        _native.watch_imports(locks)


_watch_imports()

#: What children have for a standard input, and what they have for their parent; made once here,
#: and not in each of them.
_input = _parent = None


def empty_input():
    """A standard input for children, which has nothing in it."""
    global _input
    if _input is None or _input.closed:
        _input = io.TextIOWrapper(io.BufferedReader(_NoInput()), encoding="utf-8")
        _input.mode = "r"
    return _input


#: How a child lives that nobody but this package has anything to do with.
_life = None


def _look_ahead(process_obj):
    """What a child needs for the quick way into its life and out of it; nothing if there is none.

    Others may have a `_bootstrap` of their own, such as programs that measure what tests cover.
    """
    from . import context

    global _life, _parent
    given = process.BaseProcess
    kind = type(process_obj)
    if (
        kind._bootstrap is not context._InChild._bootstrap
        or "_bootstrap" in vars(process_obj)
        or kind._after_fork is not given._after_fork
        or getattr(given._bootstrap, "__globals__", None) is not vars(process)
    ):
        return None
    if _life is None:
        if sys.version_info >= (3, 15):
            # Nobody has looked yet at what is to be done there.
            return None
        of_package = [key for key in util._afterfork_registry.data if key[1] == id(_native)]
        _life = _native.Life(of_package and of_package[-1], _LEAVES_END_TO_HANDLERS)
    pid, name = process_obj._parent_pid, process_obj._parent_name
    if _parent is None or _parent._pid != pid or _parent._name != name:
        _parent = process._ParentProcess(name, pid, None)
    has_method = context._has_start_method(process_obj._start_method)
    return _parent, empty_input(), None if has_method else context._force_start_method


def _be(process_obj, ahead):
    """Is a child, from the fork to its end."""
    global forked
    forked = os.getpid()
    code = 1
    try:
        if _LEAVES_END_TO_HANDLERS:
            atexit._clear()
            atexit.register(util._exit_function)
        _native.release_interrupts()
        sentinel = _watch(process_obj._parent_pid)
        if ahead is None:
            code = process_obj._bootstrap(parent_sentinel=sentinel)
        else:
            parent, standard_input, force_start_method = ahead
            _native.end_after_parent(process_obj._parent_pid)
            if force_start_method is not None:
                force_start_method(process_obj._start_method)
            code = _life.lead(process_obj, parent, sentinel, standard_input)
    finally:
        try:
            if _LEAVES_END_TO_HANDLERS:
                atexit._run_exitfuncs()
            _native.before_exit()
        finally:
            os._exit(code)
