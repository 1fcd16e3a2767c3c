"""What the workers of a pool run, and what becomes of what they raise."""

import faulthandler
import functools
import itertools
import os
import pickle
import signal
import sys
import types
from multiprocessing import process, util

from . import _native, context

__all__ = ()

#: What the workers that are copies of this process begin with, by the number of their pool.
inherited = {}


#: The stream whose text is kept in this process, or the one that it is a copy of.
_kept = None

#: Whether reports of crashes are kept, and go nowhere else.
_keeps_reports = False


def keep_words():
    """Has the error tell of what this worker says last, if it dies with a task.

    The stream stays what it is, for those who have it already: its `write` does one thing more.
    """
    global _kept, _keeps_reports
    descriptor = _native.words_descriptor()
    if descriptor is None:
        return
    if _keeps_reports or not faulthandler.is_enabled():
        # Those of the thread that crashed: the others wait, and there may be many.
        faulthandler.enable(descriptor, all_threads=False)
        _keeps_reports = True
    stream = sys.stderr
    # In a worker of a worker it may be one that is kept already, by now for this one.
    if stream is None or stream is _kept:
        return
    try:
        # Of this very object: some set what they are told to set on another that they write to.
        object.__setattr__(stream, "write", _keeping(stream.write))
    except (AttributeError, TypeError):
        # A stream of somebody's that cannot be changed, or none at all.
        return
    _kept = stream


def _keeping(write):
    leave = _native.leave_words

    @functools.wraps(write, updated=())
    def keep_and_write(*args, **kwargs):
        # First: this process may not live to see the write return.
        if args:
            leave(args[0])
        return write(*args, **kwargs)

    return keep_and_write


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
    context.is_worker = True
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


def ignore_interrupts():
    """An interrupt is the parent's to handle: it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # They have waited for this.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _initialize(given):
    ignore_interrupts()
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
    import traceback

    return "".join(traceback.format_exception(error)).rstrip()


def has_no_state(function):
    """Whether calls of a function leave nothing behind in it, so that it can be kept for the next.

    An object that is called, or whose method is, may be changed by that: each task has one of its
    own, as in `multiprocessing`.
    """
    if type(function) is types.BuiltinFunctionType:
        return function.__self__ is None or isinstance(function.__self__, types.ModuleType)
    return isinstance(function, (types.FunctionType, type))


def apply(function, both):
    """Calls a function once."""
    positional, named = both
    return function(*positional, **named)


def unpack(function, arguments):
    """Calls a function once, with what can be unpacked."""
    return function(*arguments)


def map_chunk(function, items):
    """Calls a function with each of some items."""
    return [function(item) for item in items]


def starmap_chunk(function, items):
    """Calls a function with each of some tuples of arguments."""
    return [function(*item) for item in items]


def flush():
    """Sends out what tasks have printed."""
    _flush(sys.stdout)
    _flush(sys.stderr)


def _flush(stream):
    try:
        stream.flush()
    except (AttributeError, ValueError, OSError):
        pass


def failed(error, by_value=True):
    """What a task that raised gives instead of a result."""
    # Not before it is needed: it would take memory in each worker.
    from multiprocessing.pool import ExceptionWithTraceback, MaybeEncodingError

    carried = ExceptionWithTraceback(error, error.__traceback__)
    try:
        # Some exceptions can be pickled and not unpickled, which the parent must not find out.
        pickle.loads(_dumps(error, by_value))
    except Exception as why:
        text = describe(error)
        return MaybeEncodingError(why, RuntimeError(text))
    return carried


def _dumps(error, by_value):
    try:
        return pickle.dumps(error)
    except Exception:
        if not by_value:
            raise
        import cloudpickle

        return cloudpickle.dumps(error)


def unread(error):
    """What a task that cannot be unpickled gives."""
    try:
        error.is_of_message = True
    except AttributeError:
        pass
    return failed(error)


def unsent(result, why):
    """What a task gives whose result cannot be sent."""
    from multiprocessing.pool import MaybeEncodingError

    try:
        error = MaybeEncodingError(why, result)
    except Exception:
        # It cannot be shown either.
        error = MaybeEncodingError(why, object.__repr__(result))
    try:
        pickle.loads(pickle.dumps(why))
        error.raised = why
    except Exception:
        # Its text has to do.
        pass
    return error


def lost(*about):
    """The exception for a task whose worker has ended."""
    from .pool import WorkerLost

    return WorkerLost(*about)


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
