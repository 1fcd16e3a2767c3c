"""What the workers of a pool run, and what becomes of what they raise."""

import itertools
import os
import pickle
import signal
import sys
import traceback
from multiprocessing import process, util
from multiprocessing.pool import ExceptionWithTraceback, MaybeEncodingError

from . import _names

__all__ = ()

#: What the workers that are copies of this process begin with, by the number of their pool.
inherited = {}

#: Whether this process is a worker: it may have children, daemon as it is.
is_worker = False

# The function of the last task, pickled and unpickled, and whether it was pickled by value.
_last = (None, None, True)


def begin_forked(number):
    """Begins a worker that is a copy of its parent."""
    given = inherited[number]
    parent = process.current_process()
    util._finalizer_registry.clear()
    util._run_after_forkers()
    util._close_stdin()
    process._children = set()
    process._process_counter = itertools.count(1)
    _become(given["name"], parent)
    _initialize(given)


def begin(given):
    """Begins a worker that is no copy of its parent."""
    _become(given["name"], process.current_process())
    _initialize(given)


def _become(name, parent):
    global is_worker
    is_worker = True
    config = dict(parent._config, daemon=True)
    own = process.BaseProcess(name=f"{name}-{os.getpid()}")
    own._config = config
    own._parent_pid = os.getppid()
    try:
        sentinel = os.pidfd_open(os.getppid())
    except OSError:
        sentinel = None
    process._current_process = own
    process._parent_process = process._ParentProcess(parent._name, os.getppid(), sentinel)


def _initialize(given):
    # An interrupt is the parent's to handle: it ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if given["initializer"] is None:
        return
    try:
        given["initializer"](*given["initargs"])
    except BaseException:
        # What it has put in queues is to arrive.
        end()
        raise


def end():
    """Ends a worker."""
    try:
        util._exit_function()
    finally:
        util._flush_std_streams()


def describe(error):
    """The error as text, with where it was raised."""
    return "".join(traceback.format_exception(error)).rstrip()


def run(task):
    """Runs a task: its outcome, and whether that may be pickled by value.

    The outcome is whether it went well, and the result or the exception. Results are pickled as
    functions are: those of a function that goes by its name have to go by names too.
    """
    global _last
    function, arguments, shape = task
    by_value = True
    try:
        if type(function) is bytes:
            if function != _last[0]:
                _last = (function, pickle.loads(function), b"cloudpickle" in function)
            _, function, by_value = _last
        if shape == 0:
            positional, named = arguments
            value = function(*positional, **named)
        elif shape == 1:
            value = [function(item) for item in arguments]
        else:
            value = [function(*item) for item in arguments]
        return (True, value), by_value
    except BaseException as error:
        return failed(error, by_value), by_value
    finally:
        # A worker that is idle may be ended at any time.
        _names.bequeath()
        _flush(sys.stdout)
        _flush(sys.stderr)


def _flush(stream):
    try:
        stream.flush()
    except (AttributeError, ValueError, OSError):
        pass


def failed(error, by_value=True):
    """The outcome of a task that raised."""
    carried = ExceptionWithTraceback(error, error.__traceback__)
    try:
        # Some exceptions can be pickled and not unpickled, which the parent must not find out.
        pickle.loads(_dumps(error, by_value))
    except Exception as why:
        text = describe(error)
        return False, MaybeEncodingError(why, RuntimeError(text))
    return False, carried


def _dumps(error, by_value):
    try:
        return pickle.dumps(error)
    except Exception:
        if not by_value:
            raise
        import cloudpickle

        return cloudpickle.dumps(error)


def unread(error):
    """The outcome of a task that cannot be unpickled."""
    try:
        error.is_of_message = True
    except AttributeError:
        pass
    return failed(error)


def unsent(done, why):
    """The outcome of a task whose result cannot be sent."""
    error = MaybeEncodingError(why, done[1])
    try:
        pickle.loads(pickle.dumps(why))
        error.raised = why
    except Exception:
        # Its text has to do.
        pass
    return False, error


def oom_kills():
    """How many processes the system has killed so far because there was no memory."""
    try:
        with open("/proc/vmstat") as numbers:
            for line in numbers:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


#: In the parent: what [`oom_kills`] gave when it was last asked.
oom_kills_seen = 0


def lost(text, pid, exitcode):
    """The exception for a task whose worker has ended."""
    global oom_kills_seen
    from .pool import WorkerLost

    out_of_memory = False
    if exitcode == -signal.SIGKILL:
        kills = oom_kills()
        out_of_memory, oom_kills_seen = kills > oom_kills_seen, kills
        if out_of_memory:
            text += "; the system was out of memory"
    return WorkerLost(text, pid, exitcode, out_of_memory)


def late(text):
    """The exception for a task that ran longer than it may."""
    from .pool import TimeoutError

    return TimeoutError(text)


def cancelled(text):
    """The exception for a task that never ran."""
    from .pool import Cancelled

    return Cancelled(text)


def broken(text):
    """The exception for tasks of a pool that cannot have workers."""
    from .pool import BrokenPool

    return BrokenPool(text)
