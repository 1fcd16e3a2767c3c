"""Starting a child by the fork server: the interpreter's own module, under this name too."""

import sys

import multiprocessing.popen_forkserver as _own

sys.modules[__name__] = _own
