"""Puts this package in the place of `multiprocessing`, here and in children."""

import builtins
import importlib
import os
import sys
import types

__all__ = ()

#: Tells children that they are to do the same.
VARIABLE = "BUNSHIN_REPLACE"

#: Packages with queues, locks and processes of their own, made of what is private in the
#: interpreter's `multiprocessing`. Their children know nothing of this package.
_APART = ("loky", "joblib.externals.loky")


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
    sys.meta_path.insert(0, _Apart)
    os.environ[VARIABLE] = "1"


class _Apart:
    """Finds the packages that go on with the interpreter's own `multiprocessing`."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Has what the others find be loaded so."""
        if not any(name == apart or name.startswith(f"{apart}.") for apart in _APART):
            return None
        for finder in sys.meta_path:
            spec = None if finder is cls else finder.find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    """A loader of modules that import the interpreter's own `multiprocessing`, also later on."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        """What the loader makes of it."""
        return self._loader.create_module(spec)

    def exec_module(self, module):
        """Runs the module."""
        # It is where functions of the module, too, look for what `import` means.
        module.__builtins__ = {**vars(builtins), "__import__": _import}
        self._loader.exec_module(module)


def _import(name, globals=None, locals=None, fromlist=(), level=0):
    first, _, last = name.partition(".")
    if level == 0 and first == "multiprocessing":
        own = importlib.import_module("bunshin._own")
        if not last or not fromlist:
            return own.package
        if last in own.modules:
            return own.modules[last]
    return builtins.__import__(name, globals, locals, fromlist, level)
