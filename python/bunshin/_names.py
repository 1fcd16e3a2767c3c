"""Names of shared memory, and how long they stay.

A name goes with the process that made it, if that is killed. What a process leaves behind that
ends in order belongs to the process at the top of the tree, and so does what a task of a pool
has made: others may have been told of it.
"""

import os

from multiprocessing import spawn, util

from . import _native

__all__ = ()

#: What the process runs that removes names: only the engine, without this package.
_PROGRAM = """\
import importlib.machinery as machinery, importlib.util as util
loader = machinery.ExtensionFileLoader('bunshin._native', {path!r})
module = util.module_from_spec(util.spec_from_loader(loader.name, loader))
loader.exec_module(module)
module.run_child()
"""

_prepared_in = None


def prepare():
    """To be called before this process makes names, or has them watched."""
    global _prepared_in
    if _prepared_in == os.getpid():
        return
    _set_command()
    util.Finalize(None, bequeath, exitpriority=-900)
    _prepared_in = os.getpid()


def _set_command():
    from . import _start

    if _start.is_frozen():
        _native.set_names_command([os.fsdecode(spawn.get_executable()), _start.FROZEN])
        return
    program = _PROGRAM.format(path=_native.__file__)
    _native.set_names_command([os.fsdecode(spawn.get_executable()), "-I", "-S", "-c", program])


def bequeath():
    """Lets the names that are there live as long as the process at the top of the tree."""
    try:
        _native.bequeath_names()
    except OSError:
        # They go with this process, then.
        pass


# Never without it: the engine would run this very program again.
_set_command()
