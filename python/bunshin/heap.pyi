# Blocks of shared memory: of the same types as in `multiprocessing`.

from multiprocessing.heap import (
    Arena as Arena,
    BufferWrapper as BufferWrapper,
    Heap as Heap,
    rebuild_arena as rebuild_arena,
    reduce_arena as reduce_arena,
)
