"""Caps of whole runs under replies that are billed but unusable: they are never exceeded.

A case of cases/budgets.jsonl gives every n-th request a fault. The bill of such a request is the most that may have
been generated; the bill of the others is their reported usage.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from malt.cli.main import exit_code
from tests.configs import REQUESTS, write_config
from tests.mishaps import Asked, Fault, cut_short, hang, no_choices, not_json, rate_limited, reset
from tests.providers import ScriptedProvider, tokens_in

Case = dict[str, Any]

CASES: list[Case] = [
    json.loads(line) for line in (Path(__file__).parents[1] / "cases/budgets.jsonl").read_text().splitlines()
]
CAP_TOKENS, CAP_USD, MOST_TOKENS = 9_000, 0.004, 100
GPT_4O_MINI_USD = (0.15e-6, 0.6e-6)
"""Price in dollars of a token of the prompt, and of the answer."""
FREE = {429, 500}


def worst(asked: Asked) -> dict[str, int]:
    prompt, completion = tokens_in(asked.prompt), asked.count * MOST_TOKENS
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def parts(asked: Asked) -> Fault:
    """Answer with the content as a list, as some servers do."""
    message = {"role": "assistant", "content": [{"type": "text", "text": 5}]}
    choices = [{"index": index, "message": message, "finish_reason": 7} for index in range(asked.count)]
    return Fault(text=json.dumps({"id": 1, "object": "x", "choices": choices, "usage": worst(asked)}))


def nonsense(asked: Asked) -> Fault:
    """Answer correctly with a wrong usage."""
    usage: object = ({"prompt_tokens": -9, "completion_tokens": "many"}, [], {"total_tokens": 1e308}, "free")[
        asked.number % 4
    ]
    message = {"role": "assistant", "content": "Final Answer: 5"}
    choices = [{"index": index, "message": message, "finish_reason": "stop"} for index in range(asked.count)]
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return Fault(text=json.dumps(body))


def fault_of(name: str, asked: Asked) -> Fault:
    match name:
        case "parts":
            return parts(asked)
        case "usage":
            return nonsense(asked)
        case "nested":
            return Fault(text="[" * 5_000 + "]" * 5_000)
        case "empty":
            return Fault(text="")
        case "gateway":
            return Fault(status=504, text="<html>504 Gateway Time-out</html>")
        case "parts and cuts":
            return parts(asked) if asked.number % 2 else cut_short()
        case "turns":
            return rate_limited(0.01) if asked.number % 4 == 0 else cut_short()
    return {"no_choices": no_choices, "page": not_json, "reset": reset, "cut": cut_short, "hang": hang}[name]()


class Bill:
    """Faults of a case, and the provider's bill for them."""

    def __init__(self, case: Case) -> None:
        self.case, self.tokens, self.usd = case, 0, 0.0

    def __call__(self, asked: Asked) -> Fault | None:
        if asked.number % self.case["every"]:
            return None
        fault = fault_of(self.case["fault"], asked)
        if fault.status not in FREE:
            most = worst(asked)
            self.tokens += most["total_tokens"]
            self.usd += most["prompt_tokens"] * GPT_4O_MINI_USD[0] + most["completion_tokens"] * GPT_4O_MINI_USD[1]
        return fault


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_cap_is_never_exceeded_whatever_the_replies(
    case: Case, provider: ScriptedProvider, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bill = Bill(case)
    provider.faults = bill
    for name, value in case.get("provider", {}).items():
        setattr(provider, name, value)
    in_dollars = case.get("cap") == "usd"
    cap = f"limits.max_cost_usd={CAP_USD}" if in_dollars else f"limits.max_tokens_total={CAP_TOKENS}"
    small = [f"roles.{role}.{key}" for role in REQUESTS for key in ("samples=2", f"max_tokens={MOST_TOKENS}")]
    options = [part for each in (*small, cap, *case.get("options", ())) for part in ("-s", each)]
    code = exit_code(["run", str(write_config(tmp_path, provider, questions=6)), *options])
    said = capfd.readouterr().err
    assert code in (0, 1, 3), said
    assert "Traceback" not in said
    assert "not expected" not in said
    assert provider.request_count >= 3
    sent = [provider._usage(each.asked, provider._answer(each.asked)["choices"]) for each in provider.sent]
    if in_dollars:
        assert bill.usd + (provider.cost_usd or 0) * len(sent) <= CAP_USD
    else:
        assert bill.tokens + sum(usage["total_tokens"] for usage in sent) <= CAP_TOKENS
