"""Puts this package in the place of `multiprocessing`, here and in children."""

import importlib
import os
import sys

__all__ = ()

#: Tells children that they are to do the same.
VARIABLE = "BUNSHIN_REPLACE"

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


def install():
    """From now on `import multiprocessing` gives this package."""
    package = importlib.import_module("bunshin")
    # All of them first: the interpreter's own import each other by name, and late.
    ours = {name: importlib.import_module(f"bunshin.{name}") for name in SUBMODULES}
    sys.modules["multiprocessing"] = package
    for name, module in ours.items():
        sys.modules[f"multiprocessing.{name}"] = module
        parent, _, last = name.rpartition(".")
        setattr(ours[parent] if parent else package, last, module)
        # What the interpreter's own make by default, they make with our contexts.
        if hasattr(module, "get_context") and name != "context":
            module.get_context = package.get_context
    os.environ[VARIABLE] = "1"
