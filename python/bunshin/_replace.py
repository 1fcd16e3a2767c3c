"""Puts this package in the place of `multiprocessing`, here and in children."""

import importlib
import os
import sys
import types

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


#: Under which names the interpreter's own modules stay importable.
OWN = "bunshin._own"


def _keep(name, own, ours):
    """Has what a module of ours stands before go by a name that still leads to it.

    The interpreter's other modules go on using it, and pickle would find ours instead.
    """
    sys.modules[f"{OWN}.{name}"] = own
    for key, value in vars(own).items():
        if getattr(value, "__module__", None) != f"multiprocessing.{name}":
            continue
        is_named = isinstance(value, (type, types.FunctionType))
        if is_named and getattr(ours, key, None) is not value:
            value.__module__ = f"{OWN}.{name}"


def install():
    """From now on `import multiprocessing` gives this package."""
    package = importlib.import_module("bunshin")
    if sys.modules.get("multiprocessing") is package:
        return
    sys.modules.setdefault(OWN, types.ModuleType(OWN, "The interpreter's own modules."))
    # All of them first: the interpreter's own import each other by name, and late.
    ours = {name: importlib.import_module(f"bunshin.{name}") for name in SUBMODULES}
    for name, module in ours.items():
        own = importlib.import_module(f"multiprocessing.{name}")
        if own is not module:
            _keep(name, own, module)
    sys.modules["multiprocessing"] = package
    for name, module in ours.items():
        sys.modules[f"multiprocessing.{name}"] = module
        parent, _, last = name.rpartition(".")
        setattr(ours[parent] if parent else package, last, module)
        # What the interpreter's own make by default, they make with our contexts.
        if hasattr(module, "get_context") and name != "context":
            module.get_context = package.get_context
    os.environ[VARIABLE] = "1"
