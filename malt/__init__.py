"""MALT: trees of three cooperating roles' answers, and versioned training data (Motwani et al., arXiv 2412.01928).

The data path is `Question -> Tree -> Grade -> value -> rows -> dataset version`:

questions   question files                            llm          model requests: the store, limits, providers
prompts     the roles' prompt sets                    trees        growth, grading, credit
config      declared datasets, settings               datasets     rows, versions, checks
evaluation  systems compared on held-out questions    improvement  rounds of growing, training, evaluating
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from malt.config.spec import RunSpec as RunSpec
    from malt.datasets.version.dataset_version import DatasetVersion as DatasetVersion
    from malt.datasets.version.dataset_version import open_version as open_version
    from malt.engine.python_api import TrainingDataGenerator as TrainingDataGenerator
    from malt.evaluation.evaluate import evaluate as evaluate
    from malt.evaluation.version import EvaluationVersion as EvaluationVersion
    from malt.evaluation.version import open_evaluation as open_evaluation
    from malt.grading.judge import JudgeReply as JudgeReply
    from malt.grading.judge import LLMEvaluator as LLMEvaluator
    from malt.grading.judge import Score as Score
    from malt.improvement.improve import improve as improve

_HOMES = {
    "DatasetVersion": "malt.datasets.version.dataset_version",
    "EvaluationVersion": "malt.evaluation.version",
    "JudgeReply": "malt.grading.judge",
    "LLMEvaluator": "malt.grading.judge",
    "RunSpec": "malt.config.spec",
    "Score": "malt.grading.judge",
    "TrainSpec": "malt.config.train",
    "TrainingDataGenerator": "malt.engine.python_api",
    "evaluate": "malt.evaluation.evaluate",
    "improve": "malt.improvement.improve",
    "open_evaluation": "malt.evaluation.version",
    "open_model": "malt.models.version",
    "open_version": "malt.datasets.version.dataset_version",
    "train": "malt.training.run",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that `malt --help` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'malt' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
