"""What the workers of a pool run, and what becomes of what they raise."""

import _signal
import contextlib
import faulthandler
import itertools
import os
import pickle
import sys
import types
from multiprocessing import process, util

from . import _fork, _native, context

__all__ = ()

#: What the workers that are copies of this process begin with, by the number of their pool.
inherited = {}


def leave_to_copies(number, given, process_obj):
    """Leaves to the workers of a pool, which are to be copies of this process, what they begin with.

    A page is copied for each worker that uses an object on it: what they can have ready is made here.
    """
    parent = process.current_process()
    own = process.BaseProcess.__new__(process.BaseProcess)
    own.__dict__.update(process_obj.__dict__)
    given["own"] = own
    given["parent"] = process._ParentProcess(parent._name, os.getpid(), None)
    # A call's first time is where its names are made.
    with contextlib.suppress(OSError):
        os.close(os.pidfd_open(os.getpid()))
    given["children"] = set()
    given["counter"] = itertools.count(1)
    given["input"] = _fork.empty_input()
    inherited[number] = given


def _take_input(empty):
    """Has an input at its end, as `util._close_stdin` does."""
    if sys.stdin is None or sys.stdin is empty:
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stdin.close()
    sys.stdin = empty


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
        faulthandler.enable(descriptor, False)
        _keeps_reports = True
    stream = sys.stderr
    # In a worker of a worker it may be one that is kept already, by now for this one.
    if stream is None or stream is _kept:
        return
    try:
        # Of this very object: some set what they are told to set on another that they write to.
        object.__setattr__(stream, "write", _native.KeepingWrite(stream.write))
    except (AttributeError, TypeError):
        # A stream of somebody's that cannot be changed, or none at all.
        return
    _kept = stream


def begin_forked(number):
    """Begins a worker that is a copy of its parent."""
    given = inherited[number]
    parent = process._current_process
    # What it has of pipes is closed by `end`.
    _fork.forked = os.getpid()
    if _is_wrapped():
        own, above = given["own"], given["parent"]
        _begin_later(own, lambda: _become_and_initialize(given, own, above, parent))
        return
    util._finalizer_registry.clear()
    # One of them is the package's own, and has nothing to do then.
    if len(util._afterfork_registry.data) > 1:
        util._run_after_forkers()
    _take_input(given["input"])
    process._children = given["children"]
    process._process_counter = given["counter"]
    _become_and_initialize(given, given["own"], given["parent"], parent)


def begin(given):
    """Begins a worker that is no copy of its parent."""
    parent = process.current_process()
    above = process._ParentProcess(given["parent_name"], os.getppid(), None)
    own = process.BaseProcess()
    if _is_wrapped():
        _begin_later(own, lambda: _become_and_initialize(given, own, above, parent))
        return
    process._process_counter = itertools.count(1)
    _become_and_initialize(given, own, above, parent)


def _is_wrapped():
    """Whether others have put something around the lives of processes, as those do who measure
    what tests cover."""
    return getattr(process.BaseProcess._bootstrap, "__globals__", None) is not vars(process)


#: The process object of a worker whose life is led within what others have put around it, and what
#: it begins with.
_later = None


def _begin_later(own, begin):
    """Leaves the beginning of a worker to [`live`]."""
    global _later
    _later = own, begin
    _native.live_within()


def live(rest):
    """Leads a worker's life within what others have put around those of processes.

    `rest` is all of it from its beginning on, to be told what was wrong with that.
    """
    own, begin = _later
    parent = process.current_process()
    own._parent_pid, own._parent_name = os.getppid(), parent._name
    # It is in the context's hands already.
    own._start_method = None
    own._name = _native.name()
    codes = []

    def run():
        try:
            begin()
        except BaseException as error:
            codes.append(rest(describe(error)))
        else:
            codes.append(rest(None))

    own.run = run
    own._bootstrap()
    return codes[0] if codes else 1


def _become_and_initialize(given, own, above, parent):
    _become(given, own, above, parent)
    _initialize(given)


def _become(given, own, above, parent):
    context.is_worker = True
    if not context._has_start_method(given["method"]):
        context._force_start_method(given["method"])
    own._name = _native.name()
    own._identity = context.identity(own._name)
    own._config = dict(parent._config, daemon=given["daemon"])
    own._parent_pid = above._pid
    try:
        above._sentinel = os.pidfd_open(above._pid)
    except OSError:
        pass
    process._current_process = own
    process._parent_process = above


def ignore_interrupts():
    """An interrupt is the parent's to handle: it ends its workers."""
    # By the module beneath, as `signal` makes members of enumerations of all that it is told.
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    # They have waited for this.
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGINT,))


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
        if _fork.forked == os.getpid():
            _native.before_exit()


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
