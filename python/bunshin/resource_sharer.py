"""Descriptors for processes that are not children: the interpreter's own module, under this name too."""

import sys

import multiprocessing.resource_sharer as _own

sys.modules[__name__] = _own
