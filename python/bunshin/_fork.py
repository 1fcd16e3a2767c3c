"""Children that are copies of this process.

What their start costs is memory: after a fork each page that either process writes to is copied,
and to use an object is to write to it. So the parent has one descriptor of a child, and the child
imports nothing.
"""

import atexit
import contextlib
import os
import signal
import sys
from multiprocessing import popen_fork, util

from . import _native

__all__ = ()

#: Whether it is left to the handlers registered in a child to end what is its own.
_LEAVES_END_TO_HANDLERS = sys.version_info >= (3, 13)

#: The process that was started here last, of this one and those above it: it closes what it has of
#: pipes before it ends.
forked = None


class Popen(popen_fork.Popen):
    """A child, as its parent has it; the sentinel is a handle on the process itself."""

    _has_sentinel = False

    def _launch(self, process_obj):
        self._owner = process_obj._parent_pid
        # An interrupt that came in the middle would have the child go on as its parent does.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        pid = None
        try:
            _share_tracker(True)
            try:
                self.pid = pid = os.fork()
            finally:
                _share_tracker(False)
            if pid == 0:
                _be(process_obj, blocked)
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
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def __del__(self, getpid=os.getpid, close=os.close):
        # In a copy of this process the number may be somebody else's.
        if self._has_sentinel and getpid() == self._owner:
            close(self.sentinel)

    def close(self):
        self.__del__()
        self._has_sentinel = False


def _share_tracker(shares):
    """Says whether a fork by this thread keeps the way to the interpreter's resource tracker, which
    newer ones otherwise close in the child."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    intent = getattr(tracker, "_fork_intent", None)
    if intent is not None:
        intent.preserve_fd = shares


def _watch(pid):
    """A descriptor that is readable once that process has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        # A parent that is gone, or a child that nobody has to collect (`SIG_IGN` for `SIGCHLD`).
        sentinel, writer = os.pipe()
        os.close(writer)
        return sentinel


def _be(process_obj, blocked):
    """Is a child, from the fork to its end; these signals were blocked before."""
    global forked
    forked = os.getpid()
    code = 1
    try:
        if _LEAVES_END_TO_HANDLERS:
            atexit._clear()
            atexit.register(util._exit_function)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        code = process_obj._bootstrap(parent_sentinel=_watch(process_obj._parent_pid))
    finally:
        try:
            if _LEAVES_END_TO_HANDLERS:
                atexit._run_exitfuncs()
            _native.before_exit()
        finally:
            os._exit(code)
