"""Pipes between threads: the interpreter's own module, under this name too."""

import sys

import multiprocessing.dummy.connection as _own

sys.modules[__name__] = _own
