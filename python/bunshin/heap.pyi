# Blocks of shared memory that children have too.

from . import _native
from ._native import Arena as Arena

__all__ = ["BufferWrapper"]

class Heap:
    def malloc(self, size: int) -> _native.Block: ...
    def free(self, block: _native.Block) -> None: ...

class BufferWrapper:
    def __init__(self, size: int) -> None: ...
    def create_memoryview(self) -> memoryview: ...
