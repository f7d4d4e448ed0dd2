"""The pool of killable processes, running functions of the standard library."""

import asyncio
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from malt.grading.process_pool import CallFailed, run_in_pool, submit, worker_pids
from malt.grading.user_code import call_function
from tests.pool import kill, kill_workers

ROOT = Path(__file__).parents[2]
SCRIPT = """
import asyncio, math
from malt.grading.process_pool import run_in_pool
print(asyncio.run(run_in_pool(math.factorial, 5, timeout_s=120)))
"""


async def test_a_call_returns_what_the_function_returns() -> None:
    assert await run_in_pool(math.factorial, 20, timeout_s=120) == math.factorial(20)


async def test_a_call_runs_in_another_process() -> None:
    assert await run_in_pool(os.getpid, timeout_s=120) != os.getpid()


async def test_an_exception_fails_the_call_and_keeps_the_process() -> None:
    pids = worker_pids()
    with pytest.raises(CallFailed, match="ValueError: factorial"):
        await run_in_pool(math.factorial, -1, timeout_s=120)
    assert set(pids) <= set(worker_pids())


async def test_a_call_that_hangs_is_killed_at_its_limit_while_others_go_on() -> None:
    hanging, limited = submit(time.sleep, 600, timeout_s=600), submit(time.sleep, 600, timeout_s=0.5)
    others = await asyncio.gather(*[run_in_pool(math.factorial, n, timeout_s=60) for n in range(300)])
    assert others == [math.factorial(n) for n in range(300)]
    with pytest.raises(CallFailed, match=r"no result within 0\.5 s"):
        await asyncio.wrap_future(limited)
    assert not hanging.done()
    kill_workers()
    with pytest.raises(CallFailed, match="died"):
        await asyncio.wrap_future(hanging)


async def test_waiting_for_a_free_process_does_not_count() -> None:
    naps = [run_in_pool(time.sleep, 0.1, timeout_s=1.5) for _ in range(80)]  # at most four sleep at once: 2 s in all
    assert await asyncio.gather(*naps) == [None] * 80


async def test_a_process_killed_from_outside_fails_its_own_call_alone() -> None:
    calls = [submit(time.sleep, 1.0, timeout_s=30) for _ in range(len(worker_pids()) or 2)]
    while not (pids := worker_pids()):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    kill(pids[0])
    ended = await asyncio.gather(*map(asyncio.wrap_future, calls), return_exceptions=True)
    assert sum(isinstance(end, CallFailed) and "died" in str(end) for end in ended) <= 1
    assert await run_in_pool(math.factorial, 3, timeout_s=120) == 6


async def test_a_process_killed_while_idle_costs_no_call() -> None:
    await run_in_pool(math.factorial, 3, timeout_s=120)
    kill_workers()
    results = await asyncio.gather(*[run_in_pool(math.factorial, 3, timeout_s=120) for _ in range(8)])
    assert results == [6] * 8


async def test_calls_come_from_any_thread_and_loop() -> None:
    results: list[int] = []

    def in_a_loop_of_its_own() -> None:
        results.append(asyncio.run(run_in_pool(math.factorial, 4, timeout_s=120)))

    threads = [threading.Thread(target=in_a_loop_of_its_own) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert results == [24] * 4


async def test_a_cancelled_call_that_waits_is_never_made() -> None:
    busy = [submit(time.sleep, 0.3, timeout_s=120) for _ in range(8)]
    waiting = submit(time.sleep, 0.0, timeout_s=120)
    assert waiting.cancel()
    await asyncio.gather(*map(asyncio.wrap_future, busy))
    assert await run_in_pool(math.factorial, 3, timeout_s=120) == 6


def test_a_script_on_stdin_without_a_main_guard_can_use_it() -> None:
    done = subprocess.run([sys.executable, "-"], input=SCRIPT, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert (done.stdout, done.stderr) == ("120\n", "")


def test_a_script_file_without_a_main_guard_can_use_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=300)
    assert (done.stdout, done.stderr) == ("120\n", "")


def test_the_processes_end_with_the_program_even_when_it_is_killed() -> None:
    script = (
        SCRIPT
        + "from malt.grading.process_pool import worker_pids\nimport os, signal\nprint(worker_pids(), flush=True)\n"
    )
    script += "os.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=300)
    pid = int(done.stdout.splitlines()[1].strip("[]"))
    assert eventually_gone(pid)


def eventually_gone(pid: int) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not is_running(pid):
            return True
        time.sleep(0.05)
    return False


def is_running(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


async def test_a_users_function_is_found_by_name_and_its_prints_stay_off_stdout(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "printing_grader.py").write_text("def grade(*given):\n    print('hello')\n    return len(given) == 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    kill_workers()
    assert await run_in_pool(call_function, "printing_grader:grade", "q", "t", "a", timeout_s=120) == 1.0
    assert capfd.readouterr().out == ""
