"""Counters of trees, tokens and cost, which add up what they are fed, and the version of the code that runs."""

import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import malt
from malt.config.roles import PLAYERS, Role
from malt.config.spec import RunSpec
from malt.datasets.manifest import Code, Failure
from malt.datasets.measures import Cost, Counts, GrowthSummary, LabelCounts, LedgerEntry, Tokens
from malt.llm.request import Completion
from malt.sanitize import replace_lone_surrogates
from malt.trees.credit import ValuedTree
from malt.trees.growth import nodes_per_question
from malt.trees.tree import FailedBranch

_DISTRIBUTION = "malt-trees"


_FRACTIONS = 2.0**80
"""Units per dollar in which costs are summed as integers: a floating-point sum would depend on the order."""


class Mergeable:
    """Counter that processes fill separately, each with consecutive questions, and that is then merged by attribute."""

    def merge(self, other: Self) -> None:
        """Add the counts of another, whose questions come after these, and whose spec is the same."""
        for name, own in vars(self).items():
            setattr(self, name, _add_up(own, vars(other)[name]))


def _add_up(own: Any, other: Any) -> Any:  # noqa: ANN401 - any attribute of a counter
    match own:
        case None:
            return other
        case bool() | tuple():  # from the spec, the same in both
            return own
        case Counter():
            own.update(other)  # `+` would drop the gates with a count of 0
            return own
        case int() | list():
            return own + other
        case dict():
            return own | {key: _add_up(own.get(key), value) for key, value in other.items()}
    own.merge(other)
    return own


class UsageCount(Mergeable):
    """Counter of completions' tokens and cost; a sum is unknown where one completion's part is."""

    def __init__(self) -> None:
        self.parts: dict[tuple[str, str], UsageCount] = {}
        """Usage by run and model."""
        self._completions = 0
        self._tokens: Counter[str] = Counter()
        self._reporting: Counter[str] = Counter()
        """Number of completions that report their tokens, by the kind of token."""
        self._known = 0
        self._fractions = 0

    def add(self, completion: Completion) -> None:
        self._add(completion)
        self.parts.setdefault((completion.run, completion.model), UsageCount())._add(completion)

    def _add(self, completion: Completion) -> None:
        self._completions += 1
        for name in ("prompt_tokens", "completion_tokens"):
            count = getattr(completion, name)
            self._reporting[name] += count is not None
            self._tokens[name] += count or 0
        if completion.cost_usd is not None:
            self._known += 1
            self._fractions += int(completion.cost_usd * _FRACTIONS)

    @property
    def tokens(self) -> Tokens:
        known = {name: self._tokens[name] if n == self._completions else None for name, n in self._reporting.items()}
        return Tokens(completions=self._completions, **known)

    @property
    def cost(self) -> Cost:
        """Cost of the completions, to a billionth of a cent."""
        usd = round(self._fractions / _FRACTIONS, 11)
        return Cost(cost_usd=usd if self._known == self._completions else None, known=self._known, known_usd=usd)


def ledger_of(usage: Mapping[Role, UsageCount]) -> tuple[LedgerEntry, ...]:
    entries = [
        LedgerEntry(run=run, role=role, model=replace_lone_surrogates(model), tokens=part.tokens, cost=part.cost)
        for role, count in usage.items()
        for (run, model), part in sorted(count.parts.items())
    ]
    return tuple(sorted(entries, key=lambda entry: entry.run))


_UNBIASED = "the mean of all leaves below a node: unbiased"
_BIASED = (
    "the mean of the leaves below a node that were asked for, whose number depends on what they were: biased away from "
    "1/2 where known_leaves is less than in a full tree"
)


def growth_of(spec: RunSpec, counts: Counts) -> GrowthSummary:
    is_full = spec.growth.mode == "full"
    return GrowthSummary(
        mode=spec.growth.mode,
        confidence=None if is_full else spec.growth.confidence,
        nodes=sum(counts.nodes.values()),
        nodes_in_full=counts.complete * sum(nodes_per_question(spec).values()),
        values=_UNBIASED if is_full else _BIASED,
    )


class TreeCount(Mergeable):
    """Counter of the trees of one version: their nodes, labels, failures, tokens and cost."""

    def __init__(self) -> None:
        self.usage: dict[Role, UsageCount] = {role: UsageCount() for role in PLAYERS}
        self.failures: list[FailedBranch] = []
        self._questions = 0
        self._complete = 0
        self._nodes: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._labels: Counter[tuple[str, bool | None]] = Counter()

    def add(self, valued: ValuedTree) -> None:
        """Count one tree; of an incomplete one, only its failures."""
        self._questions += 1
        self.failures += valued.tree.failures
        if valued.tree.complete:
            self._complete += 1
            for address, node in valued.tree.nodes.items():
                self.usage[node.role].add(node.completion)
                self._nodes[node.role] += 1
                self._statuses[node.status] += 1
                self._labels[node.role, valued.label(address)] += 1
                if address.is_leaf:
                    self._outcomes[valued.grades[address].outcome] += 1

    @property
    def counts(self) -> Counts:
        labels = self._labels
        return Counts(
            questions=self._questions,
            complete=self._complete,
            failed_branches=len(self.failures),
            nodes={role: self._nodes[role] for role in PLAYERS},
            statuses=dict(sorted(self._statuses.items())),
            outcomes=dict(sorted(self._outcomes.items())),
            labels={
                role: LabelCounts(right=labels[role, True], wrong=labels[role, False], none=labels[role, None])
                for role in PLAYERS
            },
        )


def as_failure(branch: FailedBranch) -> Failure:
    """Return a failed branch for the manifest, without the lone surrogates that a provider's message may hold."""
    reason = replace_lone_surrogates(branch.reason)
    return Failure(question_id=branch.question_id, address=branch.address, role=branch.role, reason=reason)


@cache
def code_version() -> Code:
    """Return the installed release, and the commit where the code runs from a checkout; looked up once a process."""
    try:
        release = version(_DISTRIBUTION)
    except PackageNotFoundError:
        release = "not installed"
    return Code(version=release, commit=_commit_of(Path(malt.__file__).resolve().parents[1]))


def _commit_of(folder: Path) -> str | None:
    """Return the commit checked out in a folder, `-dirty` where files differ from it; None where it is no checkout."""
    git = shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return None
    command = [git, "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - git and our own folder
    return result.stdout.strip() or None
