"""TrainingDataGenerator: a Python interface that grows trees and writes datasets without config file or Prefect."""

import asyncio
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from malt.config.limits import Limits
from malt.config.questions import QuestionSource
from malt.config.roles import PLAYERS, ModelSpec, Roles, RoleSpec
from malt.config.spec import EvaluatorSpec, RunSpec
from malt.datasets.manifest import MANIFEST_FILE
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.engine.build import build
from malt.engine.fill import fill
from malt.engine.job import Job, check_models, make_job
from malt.engine.run import Run
from malt.errors import ConfigError, NothingToPublish, QuestionError, RunStopped
from malt.grading.judge import LLMEvaluator
from malt.llm.client.run_lock import hold_run_lock
from malt.prompts import load_prompts
from malt.questions.question import Question, read_question
from malt.questions.readers import Row
from malt.trees.credit import ValuedTree
from malt.trees.replay import read_trees

_OBJECTIVE = ("exact", "contains")
"""Grader kinds used without a judge."""


_FROM_PYTHON = QuestionSource(source="python", format="plain")
"""Question source of rows passed from Python: the reference answer is the whole text."""

log = logging.getLogger(__name__)


class TrainingDataGenerator:
    """Grows MALT trees with one model in all three roles, and writes training datasets.

        generator = TrainingDataGenerator(model_name="embedded", branching_factor=2, use_llm_eval=False)
        tree = await generator.generate_trajectories("What is the capital of France?", "Paris")
        version = await generator.generate_and_evaluate(training_data, output_dir="my-dataset")

    Every answer goes through the store in `MALT_DATA_DIR`, so asking again costs nothing. To give roles their own
    models, or to use other graders and limits, pass `spec`, a `RunSpec`, instead of the arguments before it.
    """

    def __init__(
        self,
        model_name: str = "embedded",
        temperature: float | None = 0.3,
        branching_factor: int = 2,
        use_llm_eval: bool = True,
        *,
        evaluator: LLMEvaluator | None = None,
        prompts: str = "general",
        max_tokens: int | None = 1024,
        seed: int | None = None,
        api_base: str | None = None,
        api_key_env: str | None = None,
        name: str = "training-data",
        limits: Limits | None = None,
        spec: RunSpec | None = None,
    ) -> None:
        if evaluator is not None and not (use_llm_eval or spec):
            raise ConfigError("an evaluator is given, but use_llm_eval = False grades without one; leave out one")
        role = RoleSpec(
            model=model_name, temperature=temperature, samples=branching_factor, max_tokens=max_tokens, seed=seed,
            api_base=api_base, api_key_env=api_key_env,
        )  # fmt: skip
        judge = EvaluatorSpec(
            kind=("llm",) if use_llm_eval else _OBJECTIVE, model=model_name, api_base=api_base, api_key_env=api_key_env
        )
        if evaluator is not None:
            judge = judge.model_copy(update={name: getattr(evaluator.model, name) for name in ModelSpec.model_fields})
        self.spec = spec or RunSpec(
            name=name,
            questions=_FROM_PYTHON,
            prompts=prompts,
            roles=Roles(**dict.fromkeys(PLAYERS, role)),
            evaluator=judge,
            limits=limits or Limits(),
        )
        if evaluator is not None and self.spec.run.mode == "batch":
            raise ConfigError('an evaluator object asks directly; for run.mode = "batch" declare the judge in the spec')
        self.judge = evaluator
        self._run = Run()
        load_prompts(self.spec.prompts)
        check_models(self.spec)

    async def generate_trajectories(self, question: str, ground_truth: str) -> ValuedTree:
        """Grow, grade and value one question's tree.

        A failed branch is listed in `tree.failures`. Raises `RunStopped` at a limit, `ConfigError` for a wrong
        key or model, and `QuestionError` or `GradingError` for a text or a reference that cannot be used.
        """
        job = self._job([{"question": question, "ground_truth": ground_truth}])
        await self._fill(job)
        [assessed] = await asyncio.to_thread(read_trees, job.questions, job.source)
        return assessed.valued

    async def generate_and_evaluate(
        self, training_data: Sequence[Mapping[str, str]], output_dir: str | Path | None = None
    ) -> DatasetVersion:
        """Make a dataset version from rows of `question` and `ground_truth`; `output_dir` receives a copy of its files.

        Waits while another run holds the lock of this dataset. An earlier version in `output_dir` is replaced. Raises
        `ConfigError` if that folder holds something else, `QuestionError` for rows that cannot be used, and
        `NothingToPublish` if no tree is complete.
        """
        _check_replaceable(output_dir)
        job = self._job(training_data)
        async with hold_run_lock(self.spec.name, job.settings, f"run {self._run.name}"):
            await self._fill(job)
            version, _, reason = await asyncio.to_thread(build, job)
        if version is None:
            raise NothingToPublish(reason)
        for suspicion in version.manifest.suspicions:
            log.warning("%s is suspicious: %s", version.reference, suspicion)
        if output_dir is None:
            return version
        shutil.rmtree(output_dir, ignore_errors=True)
        copied = open_version(shutil.copytree(version.path, output_dir))
        return replace(copied, created=version.created)

    def _job(self, rows: Sequence[Mapping[str, str]]) -> Job:
        return make_job(self.spec, _read_examples(rows), judge=self.judge)

    async def _fill(self, job: Job) -> None:
        shortfall = (await fill(job, self._run)).shortfall
        if reason := shortfall.stopped or shortfall.waits:
            raise RunStopped(reason)


def _read_examples(rows: Sequence[Mapping[str, str]]) -> list[Question]:
    """Read rows like those of a question file; their ids come from their content."""
    if not rows:
        raise QuestionError("training_data has no rows; give some with a question and a ground_truth each")
    questions: dict[str, Question] = {}
    for number, values in enumerate(rows):
        place = f"training_data[{number}]"
        if not isinstance(values, Mapping):
            raise QuestionError(f"{place} is {values!r}, not a row such as {{'question': …, 'ground_truth': …}}")
        question = read_question(Row(place, dict(values)), _FROM_PYTHON)
        if question.question_id in questions:
            raise QuestionError(f"{place}: this question with this reference answer occurs twice; remove one")
        questions[question.question_id] = question
    return list(questions.values())


def _check_replaceable(output_dir: str | Path | None) -> None:
    """Raise if the folder holds something other than a version, which would be lost."""
    folder = Path(output_dir or "")
    if output_dir and folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_FILE).is_file():
        raise ConfigError(f"output_dir {folder} holds other files; name a new folder, or one with an earlier version")
