"""Which signals a run acts on. How it then ends is tested with processes, in flows/test_process.py."""

import subprocess
import sys

ACT = """
import os, signal
from malt.engine.signals import on_signal
seen = []
with on_signal(lambda: seen.append(0)):
    for each in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), each)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with on_signal(lambda: seen.append(0)):
    os.kill(os.getpid(), signal.SIGHUP)
print(len(seen))
"""


def test_a_terminal_that_hangs_up_is_acted_on_as_ctrl_c_is_but_not_with_nohup() -> None:
    done = subprocess.run([sys.executable, "-c", ACT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
