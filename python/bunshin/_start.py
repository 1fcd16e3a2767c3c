"""What a child that is no copy of its parent begins with."""

import atexit
import contextlib
import gc
import io
import os
import pickle
import signal
import sys
from multiprocessing import process, spawn, util
from multiprocessing.context import get_spawning_popen, set_spawning_popen

from . import _native, context

__all__ = ()

#: What a frozen program is started with to become a child, or what removes names.
FROZEN = "--bunshin-child"

#: What an interpreter is started with to become a child. What it imports for that is no garbage.
PROGRAM = """\
import gc
collects = gc.isenabled()
gc.disable()
import sys
sys.path.append({path!r})
from bunshin._start import main
main(collects)
"""


def command():
    """The words that start an interpreter as a child."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    # What `set_forkserver_preload` was given; it counts when the server is started.
    forkserver = sys.modules.get("multiprocessing.forkserver")
    modules = forkserver._forkserver._preload_modules if forkserver else ["__main__"]
    wanted = [theirs for name, theirs in _WANTED.items() if name in sys.modules]
    given = pickle.dumps((main and os.path.abspath(main), sys.path, modules, wanted)).hex()
    executable = os.fsdecode(spawn.get_executable())
    if is_frozen():
        return [executable, FROZEN, given]
    path = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    flags = util._args_from_interpreter_flags()
    return [executable, *flags, "-c", PROGRAM.format(path=path), given]


def is_frozen():
    """Whether the executable is this program, and no interpreter."""
    return getattr(sys, "frozen", False)


def freeze_support():
    """Is a child and does not return, if this frozen program was started to be one."""
    if is_frozen() and sys.argv[1:2] == [FROZEN]:
        if len(sys.argv) == 2:
            _native.run_child()
            sys.exit()
        main()


#: Whether garbage is to be collected once this process has begun: nothing where it already is.
_collects = None


def main(collects=None):
    """Is a child, or the server that makes them.

    `collects` is whether garbage was collected until this program began, which nobody but the
    interpreter and this package has done anything in.
    """
    main, path, modules, wanted = pickle.loads(bytes.fromhex(sys.argv.pop()))
    global _collects, _is_server
    if os.environ["BUNSHIN_START"].startswith("server:"):
        _is_server = True
        if collects:
            gc.enable()
        _preload(main, path, modules, wanted)
    else:
        _collects = collects
    try:
        ended = _native.run_child()
    except KeyboardInterrupt:
        # There was nothing to be interrupted: a copy without a task, or one that had done it.
        if _is_server:
            os._exit(1)
        sys.exit(1)
    if ended is None:
        sys.exit("bunshin: this is how children are started, not programs")
    code, is_copy = ended
    if is_copy:
        if _has_own_handlers:
            atexit._run_exitfuncs()
        util._flush_std_streams()
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def spawning(popen):
    """What is pickled meanwhile, is pickled for a child."""
    before = get_spawning_popen()
    set_spawning_popen(popen)
    try:
        yield
    finally:
        set_spawning_popen(before)


#: What children are likely to want loaded, by what their parent then has loaded. Each module more
#: in the server makes each start slower: its memory is copied, and taken apart again.
_WANTED = {
    name: name
    for name in (
        "bunshin.connection",
        "bunshin.heap",
        "bunshin.managers",
        "bunshin.queues",
        "bunshin.shared_memory",
        "bunshin.sharedctypes",
        "bunshin.synchronize",
        "multiprocessing.connection",
        "multiprocessing.heap",
        "multiprocessing.managers",
        "multiprocessing.queues",
        "multiprocessing.shared_memory",
        "multiprocessing.sharedctypes",
        "multiprocessing.synchronize",
        "pkgutil",
        "traceback",
        "typing",
    )
}


def _preload(main, path, modules, wanted):
    """Has copies of this server find loaded what they will want."""
    import importlib

    # Workers: a parent whose first start is another may well have a pool later.
    from . import _replace, _worker  # noqa: F401

    if _replace.VARIABLE in os.environ:
        # Before the main module binds the name to something.
        _replace.install()
    for name in wanted:
        importlib.import_module(name)
    own_path = sys.path[:]
    sys.path[:] = path
    process.current_process()._inheriting = True
    try:
        for name in modules:
            if name != "__main__":
                importlib.import_module(name)
            elif main is not None:
                spawn.import_main_path(main)
    except Exception:
        # Each child tries it again, and says what is wrong.
        sys.path[:] = own_path
    finally:
        del process.current_process()._inheriting


def preparation(process_obj):
    """What a child takes over from this process before it unpickles anything else."""
    from ._replace import VARIABLE

    # Without that module there is no such process either.
    resources = sys.modules.get("multiprocessing.resource_tracker")
    tracker = resources and resources._resource_tracker._fd
    data = spawn.get_preparation_data(process_obj._name)
    if os.path.basename(data.get("init_main_from_path") or "") == "<stdin>":
        # It cannot be read twice.
        del data["init_main_from_path"]
    # In a notebook, at a prompt, and under `-c`.
    _native.set_main_is_private(
        "init_main_from_name" not in data and "init_main_from_path" not in data
    )
    return {
        "data": data,
        "tracker": None if tracker is None else _native.Descriptor(tracker),
        "top": _native.top(),
        "parent": os.getpid(),
        "start_method": context._default_context.get_start_method(allow_none=True),
        "replace": VARIABLE in os.environ,
    }


_parent_sentinel = None


def prepare(given):
    """Takes over what [`preparation`] gave."""
    global _parent_sentinel
    # They have waited for the interpreter to begin.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    os.environ.pop("BUNSHIN_START", None)
    if given["replace"]:
        from . import _replace

        _replace.install()
    _native.set_top(given["top"])
    if given["tracker"] is not None:
        from . import resource_tracker

        resource_tracker._resource_tracker._fd = given["tracker"].detach()
    try:
        _parent_sentinel = os.pidfd_open(given["parent"])
    except OSError:
        # It has ended, and so will this process.
        _parent_sentinel, writer = os.pipe()
        os.close(writer)
    process.current_process()._inheriting = True
    if _collects:
        # What is there now does not become garbage before the end, and need not be looked at.
        gc.freeze()
        gc.enable()
        # It is the last of the handlers.
        atexit.register(_collect)
    data = given["data"]
    main = data.pop("init_main_from_path", None)
    spawn.prepare(data)
    if main is not None:
        _import_main(main)
    if given["start_method"] is not None:
        context._force_start_method(given["start_method"])


def _collect():
    """Collects the garbage of the child's program before the interpreter looks through everything."""
    # It was registered before this, and comes after it; newer interpreters leave it to do then what
    # the program has registered for its end.
    util._exit_function()
    if not gc.isenabled():
        return
    gc.collect()
    # Once modules are gone, all of it is garbage.
    gc.unfreeze()
    gc.disable()


def _import_main(path):
    """Has the parent's main module in this process too, under a name that is not `__main__`."""
    before = sys.modules["__main__"]
    if getattr(before, "__file__", None) == path:
        # A copy of a server that has it.
        return
    name, extension = os.path.splitext(os.path.basename(path))
    if extension != ".py" or name == "ipython":
        # A folder, an archive, byte code, or nothing that is to be run again.
        spawn.import_main_path(path)
        return
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    main = type(sys)("__mp_main__")
    main.__file__ = path
    main.__package__ = ""
    main.__cached__ = None
    spawn.old_main_modules.append(before)
    sys.modules["__mp_main__"] = main
    given, sys.argv[:1] = sys.argv[:1], [path]
    try:
        exec(code, vars(main))
    finally:
        sys.argv[:1] = given
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main


#: Whether this process is the server of others, or a copy of it.
_is_server = False

#: Whether what is registered for the exit was registered by this process, and not by the server.
_has_own_handlers = False


def run(process_obj):
    """Runs a process object that was unpickled; gives the exit code."""
    global _has_own_handlers
    if _is_server:
        atexit._clear()
        # From CPython 3.13 on it is nobody else who has finalizers run.
        atexit.register(util._exit_function)
        _has_own_handlers = True
    process.current_process().__dict__.pop("_inheriting", None)
    return process_obj._bootstrap(parent_sentinel=_parent_sentinel)
