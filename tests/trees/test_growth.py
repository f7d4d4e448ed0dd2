"""Growing a question's tree: numbers of nodes and requests, their order, and failed branches."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.config.limits import Limits
from malt.config.questions import QuestionSource
from malt.config.roles import PLAYERS, Role, Roles, RoleSpec
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.errors import ConfigError, RunStopped
from malt.llm.client.completers import make_completer
from malt.llm.client.session import open_session
from malt.llm.request import Complete, Completion, CompletionRequest, FinishReason, RequestFailed
from malt.prompts import load_prompts
from malt.questions.question import Question
from malt.trees.growth import TreeInputs, grow, nodes_per_question, requests_per_question
from malt.trees.tree import Address, FailedBranch, NodeStatus, Tree
from tests import mishaps
from tests.providers import ScriptedProvider
from tests.strategies import PAPER, Branching, addresses

QUESTION = Question(question_id="q1", question="What is 2 + 3?", ground_truth="5")
PROMPTS = load_prompts("general")
SHAPES = st.tuples(*[st.integers(1, 4)] * 3)


def shaped(branching: Branching, provider: ScriptedProvider | None = None) -> RunSpec:
    """Return a spec with this branching and a model of its own for each role."""
    served = {"api_base": provider.url, "api_key_env": "TEST_KEY", "seed": 7} if provider else {}
    roles = {
        role.value: RoleSpec.model_validate({"model": f"openai/{role}", "samples": samples, **served})
        for role, samples in zip(PLAYERS, branching, strict=True)
    }
    return RunSpec(name="shape", questions=QuestionSource(source="none"), roles=Roles.model_validate(roles))


def written(request: CompletionRequest, sample: int) -> Completion:
    """Return a completion whose text names its role and address."""
    text = f"{request.role} {Address.parse(request.address).child(sample)}"
    return Completion(request.keys[sample], text, None, FinishReason.STOP, "written")


async def write(request: CompletionRequest) -> Sequence[Completion]:
    """Complete any request at once."""
    return [written(request, sample) for sample in range(request.count)]


def grown(branching: Branching, complete: Complete = write) -> Tree:
    return asyncio.run(grow(QUESTION, TreeInputs(shaped(branching), PROMPTS, complete)))


def grown_at(provider: ScriptedProvider, settings: Settings, branching: Branching = PAPER) -> Tree:
    """Grow a tree by asking a provider, through the store."""
    session = open_session(settings, Limits())
    ask = make_completer(session, [QUESTION.question_id])
    return session.run(grow(QUESTION, TreeInputs(shaped(branching, provider), PROMPTS, ask)))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "k")


@given(SHAPES)
def test_a_tree_has_n_and_nm_and_nmk_nodes_in_depth_first_order(branching: Branching) -> None:
    tree = grown(branching)
    assert list(tree.nodes) == addresses(branching)
    assert Counter(node.role for node in tree.nodes.values()) == nodes_per_question(shaped(branching))
    assert tree.complete


@given(SHAPES)
def test_siblings_are_one_request(branching: Branching) -> None:
    asked: list[CompletionRequest] = []

    async def note(request: CompletionRequest) -> Sequence[Completion]:
        asked.append(request)
        return await write(request)

    grown(branching, note)
    assert Counter(request.role for request in asked) == requests_per_question(shaped(branching))
    assert len({request.address for request in asked}) == len(asked)


def test_at_three_samples_a_question_is_39_nodes_and_13_requests(
    provider: ScriptedProvider, settings: Settings
) -> None:
    tree = grown_at(provider, settings)
    assert len(tree.nodes) == 39
    assert Counter(asked.model for asked in provider.requests) == {"generator": 1, "verifier": 3, "refiner": 9}
    assert provider.completions_sent == 39


def test_every_level_may_branch_differently(provider: ScriptedProvider, settings: Settings) -> None:
    tree = grown_at(provider, settings, (2, 1, 3))
    assert list(tree.nodes) == addresses((2, 1, 3))
    assert provider.completions == {"generator": 2, "verifier": 2, "refiner": 6}


def test_each_role_sees_the_texts_above_it_and_no_others() -> None:
    tree = grown((2, 2, 1))
    refiner = tree.nodes[Address((1, 0, 0))]
    seen = refiner.prompt[-1].content
    assert "generator 1" in seen
    assert "verifier 1.0" in seen
    assert "generator 0" not in seen
    assert "verifier 1.1" not in seen


def test_siblings_share_everything_but_the_end_of_their_prompts() -> None:
    tree = grown(PAPER)
    first, second = (tree.nodes[Address((0, verifier, 0))].prompt for verifier in (0, 1))
    assert first[:-1] == second[:-1]
    assert first[-1].content.partition("verifier")[0] == second[-1].content.partition("verifier")[0]


def test_children_are_requested_as_soon_as_their_parent_exists() -> None:
    """One critique waits for a refinement below another: with a barrier between the levels it would wait for ever."""
    refined = asyncio.Event()

    async def complete(request: CompletionRequest) -> Sequence[Completion]:
        if request.role is Role.REFINER:
            refined.set()
        if (request.role, request.address) == (Role.VERIFIER, "0"):
            await refined.wait()
        return await write(request)

    async def within_limit() -> Tree:
        return await asyncio.wait_for(grow(QUESTION, TreeInputs(shaped(PAPER), PROMPTS, complete)), timeout=60)

    assert asyncio.run(within_limit()).complete


def test_the_reference_answer_reaches_no_trained_role(provider: ScriptedProvider, settings: Settings) -> None:
    secret = Question(question_id="q2", question="Name it.", ground_truth="xyzzy-4711", metadata={"hint": "xyzzy-4711"})
    session = open_session(settings, Limits())
    work = grow(secret, TreeInputs(shaped(PAPER, provider), PROMPTS, make_completer(session, ["q2"])))
    assert session.run(work).complete
    assert len(provider.requests) == 13
    assert not [asked for asked in provider.requests if "xyzzy" in repr(asked)]


def test_a_failed_branch_is_recorded_and_everything_else_grows_on() -> None:
    async def complete(request: CompletionRequest) -> Sequence[Completion]:
        if (request.role, request.address) == (Role.VERIFIER, "1"):
            raise RequestFailed("the server is on fire")
        return await write(request)

    tree = grown(PAPER, complete)
    assert tree.failures == (FailedBranch("q1", "1", Role.VERIFIER, "the server is on fire"),)
    assert list(tree.nodes) == [address for address in addresses() if address[0] != 1 or len(address) == 1]


def test_siblings_of_a_failed_sample_grow_on() -> None:
    async def complete(request: CompletionRequest) -> Sequence[Completion]:
        if request.role is Role.GENERATOR:
            raise RequestFailed("one choice is missing", {0: written(request, 0), 2: written(request, 2)})
        return await write(request)

    tree = grown(PAPER, complete)
    assert {address[0] for address in tree.nodes} == {0, 2}
    assert len(tree.nodes) == 2 + 6 + 18
    assert [failure.address for failure in tree.failures] == [""]


def test_a_question_whose_first_request_fails_is_a_tree_of_nothing(
    provider: ScriptedProvider, settings: Settings
) -> None:
    provider.faults = lambda _asked: mishaps.context_overflow()
    tree = grown_at(provider, settings)
    assert tree.nodes == {}
    assert [failure.role for failure in tree.failures] == [Role.GENERATOR]
    assert "maximum context length" in tree.failures[0].reason


def test_a_stop_of_the_run_waits_for_requests_in_flight() -> None:
    arrived: list[str] = []

    async def complete(request: CompletionRequest) -> Sequence[Completion]:
        if (request.role, request.address) == (Role.VERIFIER, "0"):
            raise RunStopped("the budget is spent")
        await asyncio.sleep(0.02)
        arrived.append(f"{request.role} {request.address}")
        return await write(request)

    with pytest.raises(RunStopped, match="budget"):
        grown(PAPER, complete)
    assert sorted(arrived) == [
        "generator ",
        *(f"refiner {v}.{r}" for v in (1, 2) for r in range(3)),
        "verifier 1",
        "verifier 2",
    ]


def test_our_own_fault_is_raised() -> None:
    async def complete(request: CompletionRequest) -> Sequence[Completion]:
        raise ConfigError(f"no such model: {request.model.model}")

    with pytest.raises(ConfigError, match="no such model"):
        grown(PAPER, complete)


def test_a_truncated_text_is_a_node_that_says_so(provider: ScriptedProvider, settings: Settings) -> None:
    provider.truncated = lambda asked: asked.model == "verifier"
    tree = grown_at(provider, settings)
    assert tree.complete
    assert {node.status for node in tree.nodes.values() if node.role is Role.VERIFIER} == {NodeStatus.TRUNCATED}
    assert {node.status for node in tree.leaves} == {NodeStatus.OK}


def test_refused_and_empty_texts_are_nodes_too(provider: ScriptedProvider, settings: Settings) -> None:
    provider.faults = mishaps.when(lambda asked: asked.model == "verifier", mishaps.reply_filtered())
    provider.script = lambda asked, _sample: "  " if asked.model == "refiner" else "Final Answer: 5"
    tree = grown_at(provider, settings)
    statuses = {role: {node.status for node in tree.nodes.values() if node.role is role} for role in PLAYERS}
    assert statuses == {
        Role.GENERATOR: {NodeStatus.OK},
        Role.VERIFIER: {NodeStatus.REFUSED},
        Role.REFINER: {NodeStatus.EMPTY},
    }


def test_growing_again_sends_no_request(provider: ScriptedProvider, settings: Settings) -> None:
    first = grown_at(provider, settings)
    asked = provider.request_count
    again = grown_at(provider, settings)
    assert provider.request_count == asked
    assert [node.text for node in again.nodes.values()] == [node.text for node in first.nodes.values()]
