"""TrainingDataGenerator: trees and training files from Python, without a config and without Prefect."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from malt.concurrency import all_of
from malt.datasets.publishing import Provenance, VersionWriter
from malt.datasets.version import DatasetVersion, open_version
from malt.inputs import check_models, windows
from malt.llm.asker import asker
from malt.llm.session import session_for
from malt.prompts import load_prompts
from malt.questions import Question, content_id
from malt.settings import Settings
from malt.spec import EvaluatorSpec, Limits, QuestionSource, Roles, RoleSpec, RunSpec
from malt.trees.assessment import assess
from malt.trees.credit import ValuedTree
from malt.trees.evaluator import LLMEvaluator

OBJECTIVE = ("exact", "contains")
"""How answers are graded where no judge is wanted."""


class TrainingDataGenerator:
    """Grows MALT trees with one model in all three roles, and writes what a trainer reads.

        generator = TrainingDataGenerator(model_name="embedded", branching_factor=2, use_llm_eval=False)
        tree = await generator.generate_trajectories("What is the capital of France?", "Paris")
        version = await generator.generate_and_evaluate(training_data, output_dir="my-dataset")

    Every answer goes through the store in `MALT_DATA_DIR`, so asking again costs nothing. Roles with models of their
    own, other graders and limits are declared with `spec`, a `RunSpec`, instead of the arguments before it.
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
        role = RoleSpec(
            model=model_name, temperature=temperature, samples=branching_factor, max_tokens=max_tokens, seed=seed,
            api_base=api_base, api_key_env=api_key_env,
        )  # fmt: skip
        judge = EvaluatorSpec(
            kind=("llm",) if use_llm_eval else OBJECTIVE, model=model_name, api_base=api_base, api_key_env=api_key_env
        )
        self.spec = spec or RunSpec(
            name=name,
            questions=QuestionSource(source="python"),
            prompts=prompts,
            roles=Roles(generator=role, verifier=role, refiner=role),
            evaluator=judge,
            limits=limits or Limits(),
        )
        self.prompts = load_prompts(self.spec.prompts)
        self.judge = evaluator
        check_models(self.spec)

    async def generate_trajectories(self, question: str, ground_truth: str) -> ValuedTree:
        """Grow, grade and value one question's tree.

        A branch that could not be had is in `tree.failures`. Raises `RunStopped` at a limit, and `ConfigError` for a
        wrong key or model.
        """
        return await self._tree(as_question(question, ground_truth))

    async def generate_and_evaluate(
        self, training_data: Sequence[Mapping[str, str]], output_dir: str | Path | None = None
    ) -> DatasetVersion:
        """Make a dataset version from rows of `question` and `ground_truth`; with `output_dir` its files lie there too.

        Raises `NothingToPublish` where no tree is complete.
        """
        questions = [as_question(row["question"], row["ground_truth"]) for row in training_data]
        provenance = Provenance(self.prompts.digests)
        with VersionWriter(self.spec, provenance, Settings().datasets_dir) as writer:
            for window in windows(questions):
                for valued in await all_of(self._tree(question) for question in window):
                    writer.add(valued)
            version = writer.publish()
        if output_dir is None:
            return version
        return open_version(shutil.copytree(version.path, output_dir, dirs_exist_ok=True))

    async def _tree(self, question: Question) -> ValuedTree:
        ask = asker(session_for(Settings(), self.spec.limits), [question.question_id])
        return await assess(question, self.spec, self.prompts, ask, self.judge)


def as_question(question: str, ground_truth: str) -> Question:
    """Make a question of two texts; its id comes from them."""
    return Question(question_id=content_id(question, ground_truth), question=question, ground_truth=ground_truth)
