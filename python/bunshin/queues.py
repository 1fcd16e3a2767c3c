"""Queues: the interpreter's own module, under this name too."""

import sys

import multiprocessing.queues as _own

sys.modules[__name__] = _own
