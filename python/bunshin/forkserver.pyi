# The server that children are copies of: of the same types as in `multiprocessing`.

from multiprocessing.forkserver import (
    connect_to_new_process as connect_to_new_process,
    ensure_running as ensure_running,
    ForkServer as ForkServer,
    get_inherited_fds as get_inherited_fds,
    MAXFDS_TO_SEND as MAXFDS_TO_SEND,
    read_signed as read_signed,
    set_forkserver_preload as set_forkserver_preload,
    SIGNED_STRUCT as SIGNED_STRUCT,
    write_signed as write_signed,
)
