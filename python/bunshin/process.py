"""Process objects and the current process: the interpreter's own module, under this name too."""

import sys

import multiprocessing.process as _own

sys.modules[__name__] = _own
