"""ctypes objects in shared memory: the interpreter's own module, under this name too."""

import sys

import multiprocessing.sharedctypes as _own

sys.modules[__name__] = _own
