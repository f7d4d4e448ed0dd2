"""The names of MALT's first description: `from malt_implementation import TrainingDataGenerator, LLMEvaluator`.

They are `malt`'s own. Beside the dataset version the generator leaves the three `*_training.json` files in the working
folder, or in `output_dir`, and shows its progress with tqdm.
"""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import malt
from malt import DatasetVersion, LLMEvaluator
from malt.llm.client.session import latest_session
from malt.trees.growth import nodes_per_question

__all__ = ["LLMEvaluator", "TrainingDataGenerator"]

_LOOK_EVERY_S = 0.2


class TrainingDataGenerator(malt.TrainingDataGenerator):
    """Grow trees, and write `generator_training.json`, `verifier_training.json` and `refiner_training.json`."""

    async def generate_and_evaluate(
        self, training_data: Sequence[Mapping[str, str]], output_dir: str | Path | None = None
    ) -> DatasetVersion:
        """Make a dataset version; its three training files are in `output_dir`, else in the working folder."""
        showing = asyncio.create_task(self._show_progress(len(training_data)))
        try:
            version = await super().generate_and_evaluate(training_data, output_dir)
        finally:
            showing.cancel()
        if output_dir is None:
            for file in version.path.glob("*_training.json"):
                shutil.copyfile(file, file.name)
        return version

    async def _show_progress(self, questions: int) -> None:
        from tqdm import tqdm

        total = questions * sum(nodes_per_question(self.spec).values())
        with tqdm(total=total, desc="completions", disable=None) as bar:
            while True:
                await asyncio.sleep(_LOOK_EVERY_S)
                if (session := latest_session()) is not None:
                    counted = session.tally.roles.values()
                    bar.update(sum(each.completions + each.cached_completions for each in counted) - bar.n)
