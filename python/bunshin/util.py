"""Logging, finalizers and temporary folders: the interpreter's own module, under this name too."""

import sys

import multiprocessing.util as _own

sys.modules[__name__] = _own
