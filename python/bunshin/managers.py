"""Server processes that hold objects, and proxies to them: the interpreter's own module, under this name too."""

import sys

import multiprocessing.managers as _own

sys.modules[__name__] = _own
