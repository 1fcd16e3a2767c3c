"""Locks and what else processes wait for each other with: the interpreter's own module, under this name too."""

import sys

import multiprocessing.synchronize as _own

sys.modules[__name__] = _own
