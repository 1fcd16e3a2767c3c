"""Removes named resources whose owners are gone.

Names of shared memory are seen to by the engine, in the process that registers them. For all
other kinds there is the interpreter's own process, which is started when it is first asked for,
and which children then share.
"""

from multiprocessing import resource_tracker as _own
from multiprocessing.resource_tracker import main  # noqa: F401

from . import _names, _native

__all__ = ["ensure_running", "register", "unregister"]


class ResourceTracker(_own.ResourceTracker):
    """Where resources are registered."""

    def register(self, name, rtype):
        """Has the resource removed if its owner does not see to it."""
        if rtype != "shared_memory":
            super().register(name, rtype)
        elif name := _checked(name):
            _names.prepare()
            try:
                _native.watch_memory(name)
            except FileNotFoundError:
                # There is nothing that could be left behind.
                pass

    def unregister(self, name, rtype):
        """Leaves the resource alone from now on."""
        if rtype != "shared_memory":
            super().unregister(name, rtype)
        elif name := _checked(name):
            try:
                _native.forget_memory(name)
            except FileNotFoundError:
                pass


def _checked(name):
    if len(name) > 480:
        raise ValueError("the name of the resource is too long")
    name = name.lstrip("/")
    return "" if "/" in name or "\0" in name or name in (".", "..") else name


# The one that the interpreter's own modules use too, so that there is one process for both.
_resource_tracker = _own._resource_tracker
_resource_tracker.__class__ = ResourceTracker
ensure_running = _resource_tracker.ensure_running
register = _resource_tracker.register
unregister = _resource_tracker.unregister
getfd = _resource_tracker.getfd


def __getattr__(name):
    return getattr(_own, name)
