# Who removes what nobody removed: of the same types as in `multiprocessing`.

from multiprocessing.resource_tracker import (
    ensure_running as ensure_running,
    getfd as getfd,
    main as main,
    register as register,
    ResourceTracker as ResourceTracker,
    unregister as unregister,
)
