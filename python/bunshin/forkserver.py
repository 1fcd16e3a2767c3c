"""The server that forks children: the interpreter's own module, under this name too."""

import sys

import multiprocessing.forkserver as _own

sys.modules[__name__] = _own
