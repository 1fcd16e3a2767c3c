"""Starting a child by fork: the interpreter's own module, under this name too."""

import sys

import multiprocessing.popen_fork as _own

sys.modules[__name__] = _own
