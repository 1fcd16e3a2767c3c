# Processes: of the same types as in `multiprocessing`.

from multiprocessing.process import (
    active_children as active_children,
    BaseProcess as BaseProcess,
    current_process as current_process,
    parent_process as parent_process,
)
