"""Blocks of shared memory: the interpreter's own module, under this name too."""

import sys

import multiprocessing.heap as _own

sys.modules[__name__] = _own
