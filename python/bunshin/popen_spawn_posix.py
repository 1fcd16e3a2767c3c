"""Starting a child by spawn: the interpreter's own module, under this name too."""

import sys

import multiprocessing.popen_spawn_posix as _own

sys.modules[__name__] = _own
