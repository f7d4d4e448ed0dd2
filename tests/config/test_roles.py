"""Roles are declared in one place: a program with one more needs no other change but its prompts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.providers import ScriptedProvider, answering
from tests.specs import write_questions

ROOT = Path(__file__).parents[2]

RUN = """
import asyncio
from pathlib import Path
from malt.config.loader import load_spec
from malt.config.roles import PLAYERS
from malt.datasets.check.verify import verify
from malt.datasets.version.dataset_version import open_version
from malt.engine.job import read_job
from malt.engine.runner import run_job

for growth in ("adaptive", "full"):
    spec = load_spec(Path("sums.toml"), [f"growth={growth}"])
    version = open_version(asyncio.run(run_job(read_job(spec))).path)
    last = version.sft(PLAYERS[-1])
    assert verify(version) == [], verify(version)
    print(growth, PLAYERS[-1], len(version.trajectories), len(last) > 0, last.node_id[0].count("."))
"""

CONFIG = """
name = "sums"
questions = {{ source = "{questions}", format = "gsm8k" }}
evaluator = {{ kind = "number" }}
[model]
model = "openai/any"
api_base = "{url}"
[roles.generator]
samples = 2
[roles.verifier]
samples = 1
[roles.refiner]
samples = 1
[roles.critic]
samples = 1
[roles.editor]
samples = 2
"""


def test_two_more_roles_take_their_declarations_and_prompts(provider: ScriptedProvider, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "malt", tmp_path / "malt")
    roles = tmp_path / "malt/config/roles.py"
    text = roles.read_text()
    text = text.replace("    EVALUATOR =", "    CRITIC = 'critic'\n    EDITOR = 'editor'\n    EVALUATOR =", 1)
    last = 'writes="refinement"),\n'
    critic = "    Part(Role.CRITIC, 'Criticises again.', 'remark', writes='remark', gives_answer=False),\n"
    editor = "    Part(Role.EDITOR, 'Answers last.', 'edit', writes='edit'),\n"
    roles.write_text(text.replace(last, last + critic + editor))
    general = tmp_path / "prompts/general"
    shutil.copytree(ROOT / "prompts/general", general)
    for added, like in (("critic", "verifier"), ("editor", "refiner")):
        shutil.copytree(general / like, general / added, ignore=shutil.ignore_patterns("examples.jsonl"))
    provider.script = answering({}, right=0.5)
    config = CONFIG.format(questions=write_questions(tmp_path, 2), url=provider.url)
    (tmp_path / "sums.toml").write_text(config)
    made = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines() == [f"{growth} editor {2 * 12} True 4" for growth in ("adaptive", "full")]
