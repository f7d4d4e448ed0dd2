"""Whether another process is alive."""

import os


def is_running(pid: int) -> bool:
    """Whether a process of this machine is there, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
