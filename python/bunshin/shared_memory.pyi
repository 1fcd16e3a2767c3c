# Memory with a name: of the same types as in `multiprocessing`.

from multiprocessing.shared_memory import (
    ShareableList as ShareableList,
    SharedMemory as SharedMemory,
)
