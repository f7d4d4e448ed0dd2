"""A supervised command ends with the process that started it, and so do the command's own child processes."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

LIMIT_S = 120.0
"""Limit in seconds for a busy machine; a child that is not ended lives for ten minutes."""
CHILD = "import time; time.sleep(600)"
STARTS_ANOTHER = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
STARTS_ANOTHER_AS_IT_ENDS = f"""
import signal, subprocess, sys, time

def start_another(*_):
    print(subprocess.Popen([sys.executable, "-c", {CHILD!r}], start_new_session=True).pid, flush=True)
    sys.exit()

signal.signal(signal.SIGTERM, start_another)
print("ready", flush=True)
time.sleep(600)
"""
LEAVES_AN_ORPHAN = "import subprocess; subprocess.run('sleep 600 & echo $!', shell=True)"
LIVES_ON = f"{LEAVES_AN_ORPHAN}; {CHILD}"


def supervised(code: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "malt.hosting.supervise", sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):  # it may exit meanwhile
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


def test_a_command_ends_with_its_parent_and_so_does_its_child_in_another_session() -> None:
    with supervised(STARTS_ANOTHER) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert is_running(child)
        process.communicate(timeout=LIMIT_S)  # closes its standard input, as our exit would
    assert not is_running(child)


def test_a_process_started_as_the_command_exits_does_not_outlive_it() -> None:
    with supervised(STARTS_ANOTHER_AS_IT_ENDS) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        out, _ = process.communicate()
    assert not is_running(int(out))


def test_an_orphan_of_a_command_that_exits_by_itself_is_ended() -> None:
    with supervised(LEAVES_AN_ORPHAN) as process:
        assert process.stdout is not None
        left = int(process.stdout.readline())
        assert process.wait(LIMIT_S) == 0
    assert not is_running(left)


def test_a_command_that_is_killed_is_started_again_and_what_it_left_ends_with_the_parent() -> None:
    with supervised(STARTS_ANOTHER) as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())
        os.kill(parent_of(orphan), signal.SIGKILL)
        again = int(process.stdout.readline())
        assert is_running(orphan)
        process.communicate()
    assert not is_running(orphan)
    assert not is_running(again)


def test_a_command_that_is_killed_over_and_over_is_given_up() -> None:
    with supervised("import os; os.kill(os.getpid(), 9)") as process:
        assert process.wait(LIMIT_S) != 0


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def test_orphans_that_end_are_reaped() -> None:
    with supervised(LIVES_ON) as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())
        os.kill(orphan, signal.SIGKILL)
        deadline = time.monotonic() + LIMIT_S
        while Path(f"/proc/{orphan}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.communicate()


def test_the_supervisor_s_exit_code_is_the_command_s() -> None:
    with supervised("raise SystemExit(3)") as process:
        assert process.wait(LIMIT_S) == 3
