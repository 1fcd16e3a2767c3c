"""The same surface with threads: the interpreter's own module, under this name too."""

import sys

import multiprocessing.dummy as _own

sys.modules[__name__] = _own
