"""What a spawned child runs: the interpreter's own module, under this name too."""

import sys

import multiprocessing.spawn as _own

sys.modules[__name__] = _own
