"""A drop-in for `multiprocessing` that never hangs, leaks or orphans.

    import bunshin as mp

Names and semantics are those of `multiprocessing`; pipes run over shared memory, in Rust.
What is not there yet in Rust is the interpreter's own, under the same names.
`python -m bunshin program.py` runs a program with `multiprocessing` replaced.
"""

import importlib as _importlib
import os as _os
import sys as _sys
from multiprocessing import util as _util

from . import _fork, _native, context, process, reduction  # noqa: F401

__all__ = [name for name in dir(context._default_context) if not name.startswith("_")]
globals().update((name, getattr(context._default_context, name)) for name in __all__)

from .context import AbandonedLock, LostItems  # noqa: E402

__all__ += ["AbandonedLock", "BrokenPool", "Cancelled", "LostItems", "WorkerLost"]


# What takes some time to import, and memory in each child, and where it is found.
_late = {
    "BrokenPool": "pool",
    "Cancelled": "pool",
    "ProcessPoolExecutor": "executor",
    "WorkerLost": "pool",
}


def __getattr__(name):
    if name in _late:
        return getattr(_importlib.import_module(f"{__name__}.{_late[name]}"), name)
    # In `multiprocessing` most modules are there once a queue or a pool was made, and programs
    # name them without having imported them.
    if not name.startswith("_"):
        from importlib.util import find_spec

        if find_spec(f"{__name__}.{name}"):
            return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# How children tell whether the main module is to be imported again.
SUBDEBUG = 5
SUBWARNING = 25

if "__main__" in _sys.modules:
    _sys.modules["__mp_main__"] = _sys.modules["__main__"]

# A copy of this process goes on with all ends of pipes, as its parent does.
def _close_at_exit(_module=None):
    if _module is not None and _fork.forked == _os.getpid():
        # It does so itself.
        return
    _util.Finalize(None, _native.before_exit, exitpriority=-1000)


_os.register_at_fork(
    before=_native.before_fork,
    after_in_parent=_native.after_fork_in_parent,
    after_in_child=_native.after_fork_in_child,
)
# Processes end without dropping their objects; a child forgets its parent's finalizers.
_close_at_exit()
_util.register_after_fork(_native, _close_at_exit)
