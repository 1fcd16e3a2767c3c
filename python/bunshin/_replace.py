"""Puts this package in the place of `multiprocessing`, here and in children."""

import importlib
import os
import sys
import types

__all__ = ()

#: Tells children that they are to do the same.
VARIABLE = "BUNSHIN_REPLACE"


def _keep(name, own, ours):
    """Has what a module of ours takes the place of go by a name that still leads to it.

    The interpreter's other modules go on using it, and pickle would find ours instead.
    """
    for key, value in vars(own).items():
        if getattr(value, "__module__", None) != f"multiprocessing.{name}":
            continue
        is_named = isinstance(value, (type, types.FunctionType))
        if is_named and getattr(ours, key, None) is not value:
            value.__module__ = f"bunshin._own.{name}"


def install():
    """From now on `import multiprocessing` gives this package."""
    package = importlib.import_module("bunshin")
    if sys.modules.get("multiprocessing") is package:
        return
    own = importlib.import_module("bunshin._own").modules
    # All of them first: the interpreter's own import each other by name, and late.
    ours = {name: importlib.import_module(f"bunshin.{name}") for name in own}
    sys.modules["multiprocessing"] = package
    for name, module in ours.items():
        if own[name] is not module:
            _keep(name, own[name], module)
        sys.modules[f"multiprocessing.{name}"] = module
        parent, _, last = name.rpartition(".")
        setattr(ours[parent] if parent else package, last, module)
        # What the interpreter's own make by default, they make with our contexts.
        for made in (own[name], module):
            if hasattr(made, "get_context") and name != "context":
                made.get_context = package.get_context
    os.environ[VARIABLE] = "1"
