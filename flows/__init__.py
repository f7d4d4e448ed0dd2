"""The flows: wiring only. A body reads as the data path."""

import os

from malt.processes import weigh_session

weigh_session(os.getpid())  # a worker starts each run in a session of its own, at the niceness that `malt up` gave it
