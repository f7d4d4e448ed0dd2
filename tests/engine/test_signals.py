"""Signals that stop a run. flows/test_process.py tests with real processes how it then ends."""

import signal
import subprocess
import sys

from malt.engine.signals import MESSAGE

ACT = """
import os, signal
from malt.engine.signals import on_signal
seen = []
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
with on_signal(lambda: seen.append(0)):
    for each in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), each)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with on_signal(lambda: seen.append(0)):
    os.kill(os.getpid(), signal.SIGHUP)
print(len(seen))
"""

STAY = """
import asyncio
from malt.engine import signals

async def stay():
    print("ready", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("told", flush=True)

signals.run(stay())
"""


def test_a_terminal_that_hangs_up_is_acted_on_as_ctrl_c_is_but_not_with_nohup() -> None:
    done = subprocess.run([sys.executable, "-c", ACT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


def test_a_second_ctrl_c_ends_a_process_that_does_not_stop_and_says_so() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STAY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for said in ("ready\n", "told\n"):
            assert process.stdout is not None
            assert process.stdout.readline() == said
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, f"error: {MESSAGE}\n")
