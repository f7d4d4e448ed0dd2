"""A question's whole pipeline: growth, grading and values; the judge's prompts, and a failing judge."""

from collections import Counter

import pytest

from malt.config.limits import Limits
from malt.config.questions import QuestionSource
from malt.config.roles import Role, Roles, RoleSpec
from malt.config.settings import Settings
from malt.config.spec import CreditSpec, EvaluatorSpec, RunSpec
from malt.errors import ConfigError, RunStopped
from malt.grading.grades import Outcome
from malt.llm.client.completers import make_completer
from malt.llm.client.session import Session, open_session
from malt.prompts import load_prompts
from malt.questions.question import Question
from malt.trees.credit import ValuedTree
from malt.trees.growth import TreeInputs
from malt.trees.pipeline import NOTHING_MISSING, Shortfall, ask_all, assess
from malt.trees.tree import Address
from tests import mishaps, providers
from tests.providers import ScriptedProvider

SUM = Question(question_id="sum", question="What is 2 + 3?", ground_truth="5")
SECRET = Question(question_id="secret", question="Name it.", ground_truth="xyzzy-4711")
PROMPTS = load_prompts("general")


def spec_of(provider: ScriptedProvider, evaluator: EvaluatorSpec, credit: CreditSpec | None = None) -> RunSpec:
    """Return a spec with two children a node and a model of its own for each role, the judge too."""

    def role(name: str) -> RoleSpec:
        return RoleSpec(model=f"openai/{name}", samples=2, api_base=provider.url, api_key_env="TEST_KEY", seed=7)

    return RunSpec(
        name="assessed",
        questions=QuestionSource(source="none"),
        roles=Roles(generator=role("generator"), verifier=role("verifier"), refiner=role("refiner")),
        evaluator=evaluator,
        credit=credit or CreditSpec(),
    )


def judged(provider: ScriptedProvider, *kinds: str, scope: str = "leaves") -> RunSpec:
    """Return a spec with a judge, after other graders if any are given."""
    evaluator = EvaluatorSpec.model_validate(
        {"kind": [*kinds, "llm"], "scope": scope, "model": "openai/judge", "api_base": provider.url}
        | {"api_key_env": "TEST_KEY"}
    )
    return spec_of(provider, evaluator)


@pytest.fixture
def session(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("TEST_KEY", "k")
    return open_session(settings, Limits())


def assessed(session: Session, spec: RunSpec, question: Question = SUM) -> ValuedTree:
    return session.run(assess(question, TreeInputs(spec, PROMPTS, make_completer(session, [question.question_id]))))


def outcomes(valued: ValuedTree) -> Counter[Outcome]:
    return Counter(grade.outcome for grade in valued.grades.values())


def test_every_leaf_is_graded_and_every_node_valued(session: Session, provider: ScriptedProvider) -> None:
    valued = assessed(session, spec_of(provider, EvaluatorSpec(kind=("number",))))
    leaves = {node.address: node for node in valued.tree.leaves}
    assert set(valued.grades) == set(leaves)
    for address, grade in valued.grades.items():
        is_right = leaves[address].text.endswith("Final Answer: 5")
        assert grade.outcome is (Outcome.RIGHT if is_right else Outcome.WRONG)
    assert set(valued.values) == set(valued.tree.nodes)


def test_the_judge_is_one_request_a_leaf(session: Session, provider: ScriptedProvider) -> None:
    valued = assessed(session, judged(provider))
    assert len(valued.grades) == 8
    assert {grade.grader for grade in valued.grades.values()} == {"llm"}
    assert len(provider.requests_to("judge")) == 8


def test_a_judge_behind_a_cascade_sees_only_undecided_answers(session: Session, provider: ScriptedProvider) -> None:
    provider.script = lambda asked, sample: (
        providers.answering({})(asked, sample)
        if asked.model == "judge"
        else f"Final Answer: {'hard to say' if sample else '5'}"
    )
    valued = assessed(session, judged(provider, "exact", "number"))
    by_judge = [address for address, grade in valued.grades.items() if grade.grader == "llm"]
    assert by_judge == [address for address in valued.grades if address[-1] == 1]


def test_equal_answers_to_one_question_are_judged_once(session: Session, provider: ScriptedProvider) -> None:
    provider.script = lambda asked, sample: (
        providers.judgement(0.9) if asked.model == "judge" else f"Final Answer: {5 + sample}"
    )
    assert outcomes(assessed(session, judged(provider))) == {Outcome.RIGHT: 8}
    assert len(provider.requests_to("judge")) == 2


def test_scope_all_judges_inner_nodes_for_their_own_columns(session: Session, provider: ScriptedProvider) -> None:
    leaves_only, everything = judged(provider), judged(provider, scope="all")
    valued = assessed(session, everything)
    assert set(valued.grades) == set(valued.tree.nodes)
    assert len(provider.requests_to("judge")) == 2 + 4 + 8
    assert valued.values == assessed(session, leaves_only).values


def test_a_failing_judge_is_a_failed_branch_of_the_evaluator(session: Session, provider: ScriptedProvider) -> None:
    provider.faults = mishaps.when(lambda asked: asked.model == "judge", mishaps.context_overflow())
    valued = assessed(session, judged(provider))
    assert not valued.tree.complete
    assert {failure.role for failure in valued.tree.failures} == {Role.EVALUATOR}
    assert {Address.parse(failure.address) for failure in valued.tree.failures} == set(valued.grades)
    assert outcomes(valued) == {Outcome.UNKNOWN: 8}
    assert valued.values == {}


def test_only_the_failed_judge_is_asked_again(session: Session, provider: ScriptedProvider) -> None:
    provider.faults = mishaps.when(lambda asked: asked.model == "judge", mishaps.context_overflow())
    assessed(session, judged(provider))
    provider.faults, asked = None, provider.request_count
    assert assessed(session, judged(provider)).tree.complete
    assert {request.model for request in provider.requests[asked:]} == {"judge"}


def test_a_judge_that_cannot_be_read_leaves_the_grade_unknown(session: Session, provider: ScriptedProvider) -> None:
    provider.script = lambda asked, sample: (
        "I would rather not." if asked.model == "judge" else providers.answering({})(asked, sample)
    )
    valued = assessed(session, judged(provider))
    assert valued.tree.complete
    assert outcomes(valued) == {Outcome.UNKNOWN: 8}
    assert "I would rather not" in (next(iter(valued.grades.values())).error or "")


@pytest.mark.parametrize(("counts_as", "value"), [("wrong", 0.0), ("unknown", None)])
def test_truncated_leaves_count_as_the_spec_says(
    session: Session, provider: ScriptedProvider, counts_as: str, value: float | None
) -> None:
    provider.truncated = lambda asked: asked.model == "refiner"
    credit = CreditSpec.model_validate({"truncated": counts_as})
    valued = assessed(session, spec_of(provider, EvaluatorSpec(kind=("number",)), credit))
    assert outcomes(valued) == {Outcome.TRUNCATED: 8}
    root = valued.values.get(Address((0,)))
    assert (None if root is None else root.mean) == value


def test_a_truncated_leaf_is_not_shown_to_the_judge(session: Session, provider: ScriptedProvider) -> None:
    provider.truncated = lambda asked: asked.model == "refiner"
    assert outcomes(assessed(session, judged(provider))) == {Outcome.TRUNCATED: 8}
    assert provider.requests_to("judge") == []


def test_the_reference_answer_is_shown_to_the_judge_alone(session: Session, provider: ScriptedProvider) -> None:
    assert assessed(session, judged(provider, scope="all"), SECRET).tree.complete
    told = {asked.model for asked in provider.requests if "xyzzy" in repr(asked)}
    assert told == {"judge"}
    assert len(provider.requests) == 7 + 14


def shortfall(session: Session, spec: RunSpec, *questions: Question) -> Shortfall:
    ask = make_completer(session, [question.question_id for question in questions])
    return session.run(ask_all(questions, TreeInputs(spec, PROMPTS, ask)))


def test_asking_for_all_leaves_everything_in_the_store(session: Session, provider: ScriptedProvider) -> None:
    assert shortfall(session, judged(provider), SUM, SECRET) == NOTHING_MISSING
    asked = provider.request_count
    for question in (SUM, SECRET):
        assert assessed(session, judged(provider), question).tree.complete
    assert provider.request_count == asked


def test_failures_of_one_question_do_not_affect_the_others(session: Session, provider: ScriptedProvider) -> None:
    provider.faults = mishaps.when(lambda asked: "Name it" in asked.prompt, mishaps.context_overflow())
    failures, stopped, _ = shortfall(session, judged(provider), SUM, SECRET)
    assert [(failure.question_id, failure.role) for failure in failures] == [("secret", Role.GENERATOR)]
    assert stopped is None
    assert assessed(session, judged(provider)).tree.complete


def test_a_stop_is_reported_in_the_shortfall(session: Session, provider: ScriptedProvider) -> None:
    spec = judged(provider)
    assert shortfall(session, spec, SUM) == NOTHING_MISSING
    session.stopped = RunStopped("the budget is spent")
    assert shortfall(session, spec, SUM, SECRET) == Shortfall((), "the budget is spent")


def test_a_wrong_key_is_raised_once_everything_has_come_back(session: Session, provider: ScriptedProvider) -> None:
    provider.key = "another"
    with pytest.raises(ConfigError, match="TEST_KEY"):
        shortfall(session, judged(provider), SUM, SECRET)
