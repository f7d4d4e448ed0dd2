"""The flows: wiring only. A body reads as the data path."""

from malt.processes import weigh_own_session

weigh_own_session()  # a worker starts each run in a session of its own, at the niceness that `malt up` gave the worker
