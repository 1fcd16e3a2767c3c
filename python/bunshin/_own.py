"""The interpreter's own `multiprocessing`, by names that stay when it is replaced.

`bunshin._own.pool` is the interpreter's `multiprocessing.pool`, and so on.
"""

import importlib
import sys

__all__ = ()

SUBMODULES = (
    "connection",
    "context",
    "dummy",
    "dummy.connection",
    "forkserver",
    "heap",
    "managers",
    "pool",
    "popen_fork",
    "popen_forkserver",
    "popen_spawn_posix",
    "process",
    "queues",
    "reduction",
    "resource_sharer",
    "resource_tracker",
    "shared_memory",
    "sharedctypes",
    "spawn",
    "synchronize",
    "util",
)

package = importlib.import_module("multiprocessing")
modules = {name: importlib.import_module(f"multiprocessing.{name}") for name in SUBMODULES}
# This is enough for `import bunshin._own.pool`, which pickle does.
sys.modules.update((f"{__name__}.{name}", module) for name, module in modules.items())
