"""Removes named resources whose owners are gone: the interpreter's own module, under this name too."""

import sys

import multiprocessing.resource_tracker as _own

sys.modules[__name__] = _own
