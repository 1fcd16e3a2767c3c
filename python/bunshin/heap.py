"""Blocks of shared memory that children have too.

A block is memory without a name: nothing is left of it when the last process that has it ends.
Running out of memory is an error when a block is made, never later. Blocks are zeroed; those of
more than a few pages when they are first touched.
"""

import weakref

from . import _native
from ._native import Arena

__all__ = ["BufferWrapper"]

#: The arenas that have been pickled, by number: who pickles several blocks sends each arena once.
_arenas = weakref.WeakValueDictionary()


class Heap:
    """Where blocks come from. All heaps are the same one, which is the engine's."""

    def malloc(self, size):
        """Returns a block of `size` bytes, which is given back when nobody refers to it."""
        return _native.Block(size)

    def free(self, block):
        """Does nothing: a block goes with the last reference to it."""


class BufferWrapper:
    """A block of shared memory, which a child inherits or is sent."""

    _heap = Heap()

    def __init__(self, size):
        self._block = self._heap.malloc(size)

    def create_memoryview(self):
        """Returns a view of the block's bytes."""
        return self._block.view()


def _wrap(block):
    """The wrapper of a block that is there."""
    wrapper = BufferWrapper.__new__(BufferWrapper)
    wrapper._block = block
    return wrapper
