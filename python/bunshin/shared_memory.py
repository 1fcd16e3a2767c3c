"""Named shared memory: the interpreter's own module, under this name too."""

import sys

import multiprocessing.shared_memory as _own

sys.modules[__name__] = _own
