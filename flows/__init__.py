"""Prefect flows: wiring only. The body of each flow reads as the path of its data."""

import os

from malt.processes import weigh_session

weigh_session(os.getpid())  # a worker starts each run in a new session; give that the niceness that `malt up` set
