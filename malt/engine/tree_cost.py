"""What growing one question's tree may cost, so that under a cap none is begun that cannot be finished."""

from contextlib import nullcontext

from malt.config.roles import PLAYERS, ModelSpec, Role, slots_of
from malt.config.spec import RunSpec
from malt.engine.job import models_asked
from malt.llm.batch.api import is_asked_in_batches
from malt.llm.budget import Amount, estimate_worst_case
from malt.llm.client.completers import SessionCompleter
from malt.llm.provider import call
from malt.llm.request import CompletionRequest, Message
from malt.prompts import PromptSet
from malt.questions.question import Question
from malt.trees.growth import nodes_per_question, requests_per_question
from malt.trees.pipeline import Admit

SHOWN = {role: PLAYERS[:depth] for depth, role in enumerate(PLAYERS)} | {Role.EVALUATOR: PLAYERS[-1:]}
"""Whose texts each role is shown."""


def admit_trees(ask: SessionCompleter, spec: RunSpec, prompts: PromptSet) -> Admit:
    """Return what every tree waits for: room under the caps, where there are any."""
    if not spec.limits.capped:
        return lambda _question: nullcontext()
    return lambda question: ask.session.tree(most_for_tree(question, spec, prompts))


def most_for_tree(question: Question, spec: RunSpec, prompts: PromptSet) -> Amount:
    """Return what a whole tree takes where every text is as long as it may be, and every leaf is judged."""
    parts = [_most_for_role(role, model, question, spec, prompts) for role, model in models_asked(spec).items()]
    return Amount(sum(part.usd for part in parts), sum(part.tokens for part in parts))


def _most_for_role(role: Role, model: ModelSpec, question: Question, spec: RunSpec, prompts: PromptSet) -> Amount:
    prices = call.find_price(model, batched=is_asked_in_batches(model, spec)) or (0.0, 0.0)
    nodes = nodes_per_question(spec)
    completions = nodes.get(role, nodes[PLAYERS[-1]])
    requests = requests_per_question(spec).get(role, completions) if call.takes_siblings(model) else completions
    shown = sum(spec.roles[above].max_tokens or 0 for above in SHOWN[role])
    request = CompletionRequest(role, model, _unwritten_prompt(role, question, prompts), question.question_id)
    prompt = estimate_worst_case(request, 0, prices)
    longest = model.max_tokens or 0
    return Amount(
        requests * (prompt.usd + shown * prices[0]) + completions * longest * prices[1],
        requests * (prompt.tokens + shown) + completions * longest,
    )


def _unwritten_prompt(role: Role, question: Question, prompts: PromptSet) -> tuple[Message, ...]:
    known = {"question": question.question, "ground_truth": question.ground_truth}
    return prompts.messages(role, **{slot: known.get(slot, "") for slot in slots_of(role)})
