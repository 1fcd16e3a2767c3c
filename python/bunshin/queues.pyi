# Queues: of the same types as in `multiprocessing`.

from multiprocessing.queues import (
    JoinableQueue as JoinableQueue,
    Queue as Queue,
    SimpleQueue as SimpleQueue,
)
