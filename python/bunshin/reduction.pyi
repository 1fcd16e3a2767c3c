# How objects are pickled for other processes: of the same types as in `multiprocessing`.

from multiprocessing.reduction import (
    AbstractReducer as AbstractReducer,
    dump as dump,
    DupFd as DupFd,
    ForkingPickler as ForkingPickler,
    HAVE_SEND_HANDLE as HAVE_SEND_HANDLE,
    recv_handle as recv_handle,
    recvfds as recvfds,
    register as register,
    send_handle as send_handle,
    sendfds as sendfds,
)
