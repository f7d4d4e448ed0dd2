"""Prompt sets: the messages of a role, the names that a template may use, and the errors for unusable sets."""

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malt.config.roles import PLAYERS, Role
from malt.errors import PromptError
from malt.llm.request import Message
from malt.prompts import PROJECT_SETS, SLOTS, PromptSet, load_prompts

SHIPPED = ("choice", "general", "math")

SMALL: Mapping[str, str] = {
    "generator/system.md": "Answer.\n",
    "generator/user.md": "Q: {{question}}\n",
    "verifier/system.md": "Check.\n",
    "verifier/user.md": "Q: {{question}}\nS: {{solution}}\n",
    "refiner/system.md": "Mend.\n",
    "refiner/user.md": "Q: {{question}}\nS: {{solution}}\nC: {{verification}}\n",
    "evaluator/system.md": "Judge.\n",
    "evaluator/user.md": "Q: {{question}}\nR: {{ground_truth}}\nA: {{answer}}\n",
}


def written(folder: Path, **changed: str | None) -> Path:
    """Write the small set with some files changed; `None` leaves a file out. `__` stands for `/`, `_` for `.`."""
    named = {name.replace("__", "/").replace("_", "."): text for name, text in changed.items()}
    for name, text in {**SMALL, **named}.items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def slots_of(role: Role, value: str = "-") -> dict[str, str]:
    return dict.fromkeys(SLOTS[role], value)


def refusal(folder: Path) -> str:
    with pytest.raises(PromptError) as caught:
        load_prompts(str(folder))
    return str(caught.value)


# What a role sees.


def test_a_role_sees_its_system_text_then_the_question(tmp_path: Path) -> None:
    prompts = load_prompts(str(written(tmp_path / "mine")))
    assert prompts.messages(Role.GENERATOR, question="Why?") == (
        Message("system", "Answer."),
        Message("user", "Q: Why?"),
    )


def test_examples_stand_between_as_earlier_turns_in_the_words_of_the_user_template(tmp_path: Path) -> None:
    example = json.dumps({"slots": {"question": "How?"}, "reply": "So.\nFinal Answer: so"})
    prompts = load_prompts(str(written(tmp_path / "mine", generator__examples_jsonl=f"\n{example}\n\n")))
    assert prompts.messages(Role.GENERATOR, question="Why?")[1:] == (
        Message("user", "Q: How?"),
        Message("assistant", "So.\nFinal Answer: so"),
        Message("user", "Q: Why?"),
    )


def test_an_empty_system_text_sends_no_system_message(tmp_path: Path) -> None:
    prompts = load_prompts(str(written(tmp_path / "mine", generator__system_md="\n")))
    assert prompts.messages(Role.GENERATOR, question="Why?") == (Message("user", "Q: Why?"),)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | st.sampled_from(["{{7*7}}", "{% for x in y %}", "{{ground_truth}}", "{# no #}", "<b>&amp;"]))
def test_a_text_with_template_syntax_in_it_is_inserted_verbatim(general: PromptSet, text: str) -> None:
    for role in Role:
        said = general.messages(role, **slots_of(role, text))[-1].content
        assert said.count(text) >= len(SLOTS[role])
        assert said == general.messages(role, **slots_of(role, "\0"))[-1].content.replace("\0", text)


@pytest.fixture(scope="module")
def general() -> PromptSet:
    return load_prompts("general")


def test_a_missing_or_needless_slot_is_an_error_that_names_both_sides(general: PromptSet) -> None:
    with pytest.raises(PromptError, match="slots given: question; a verifier takes exactly question, solution"):
        general.messages(Role.VERIFIER, question="Why?")
    with pytest.raises(PromptError, match="a generator takes exactly question"):
        general.messages(Role.GENERATOR, question="Why?", ground_truth="So")


def test_a_set_can_be_sent_to_another_process(general: PromptSet) -> None:
    again: PromptSet = pickle.loads(pickle.dumps(general))
    assert again == general
    assert again.messages(Role.GENERATOR, question="Why?") == general.messages(Role.GENERATOR, question="Why?")


# What a template may name.


@pytest.mark.parametrize("role", PLAYERS)
@pytest.mark.parametrize("file", ["system", "user"])
def test_a_trained_roles_template_that_names_the_reference_answer_is_refused(
    tmp_path: Path, role: Role, file: str
) -> None:
    folder = written(tmp_path / "mine", **{f"{role}__{file}_md": "{% if 0 %}{{ ground_truth }}{% endif %}"})
    assert f"{role}/{file}.md: names the reference answer {{{{ground_truth}}}}" in refusal(folder)


@pytest.mark.parametrize("role", PLAYERS)
def test_an_example_cannot_carry_the_reference_answer_to_a_trained_role(tmp_path: Path, role: Role) -> None:
    line = json.dumps({"slots": {**slots_of(role), "ground_truth": "42"}, "reply": "-"})
    folder = written(tmp_path / "mine", **{f"{role}__examples_jsonl": line})
    assert f"{role}/examples.jsonl:1: slots given: ground_truth" in refusal(folder)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{qestion}}", "generator/user.md: unknown slot qestion; a generator has question"),
        ("{{question}} {{solution}}", "unknown slot solution"),
        ("{{ range(9) }}", "unknown slot range"),
        ("a\n{{question", "generator/user.md:2: template syntax"),
        ("{{question.__class__.__mro__}}", "generator/user.md: template cannot be filled"),
        ("{% include 'secret.md' %}{{question}}", "generator/user.md: template cannot be filled"),
        ("{{ 1 / 0 }}{{question}}", "generator/user.md: template cannot be filled"),
        (" \n", "generator/user.md: the user template is empty"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_when_the_set_is_loaded(
    tmp_path: Path, template: str, said: str
) -> None:
    assert said in refusal(written(tmp_path / "mine", generator__user_md=template))


# Errors for sets that cannot be used.


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PromptError, match=r"no prompt set or folder 'genral' .*; sets: choice, general, math"):
        load_prompts("genral")


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_missing_file_is_named_with_its_set(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path / "mine")
    (folder / name).unlink()
    assert f"prompt set 'mine' has no {name}" in refusal(folder)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "bad example (line: Invalid JSON"),
        ('{"slots": {"question": "a"}}', "bad example (reply: Field required)"),
        ('{"slots": {"question": 7}, "reply": "b"}', "bad example (slots.question: Input should be a valid string)"),
        ('{"slots": {"question": "a"}, "reply": "b", "role": "c"}', "bad example (role: Extra inputs"),
        ('{"slots": {}, "reply": "b"}', "slots given: none; a generator takes exactly question"),
    ],
)
def test_a_bad_example_is_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    good = json.dumps({"slots": {"question": "a"}, "reply": "b"})
    folder = written(tmp_path / "mine", generator__examples_jsonl=f"{good}\n{line}\n")
    assert f"generator/examples.jsonl:2: {said}" in refusal(folder)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "mine")
    (folder / "refiner" / "system.md").write_bytes("Verbessere für".encode("latin-1"))
    assert "refiner/system.md: cannot be read as UTF-8 text" in refusal(folder)


# Where a set is found, and its identity.


def test_a_user_s_folder_takes_precedence_over_a_set_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(written(tmp_path / "general").parent)
    assert load_prompts("general").folder == tmp_path / "general"
    (tmp_path / "math").mkdir()
    assert load_prompts("math").folder == PROJECT_SETS / "math"


def test_the_digests_cover_every_file_and_nothing_but_its_text(tmp_path: Path) -> None:
    folder = written(tmp_path / "mine")
    digests = load_prompts(str(folder)).digests
    assert digests == {name: hashlib.sha256(text.encode()).hexdigest() for name, text in SMALL.items()}
    for path in folder.rglob("*.md"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    moved = shutil.copytree(folder, tmp_path / "moved" / "elsewhere")
    (moved / "notes.txt").write_text("not a prompt")
    assert load_prompts(str(moved)).digests == digests


# The sets that come with the project.


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("role", PLAYERS)
def test_every_reply_that_a_role_is_shown_ends_as_its_instructions_say(name: str, role: Role) -> None:
    system, *turns, _ = load_prompts(name).messages(role, **slots_of(role))
    mark, ending = ("Verdict: ", "(correct|wrong)") if role is Role.VERIFIER else ("Final Answer: ", r"\S.*")
    assert mark in system.content
    replies = [turn.content for turn in turns if turn.role == "assistant"]
    assert len(replies) >= 2
    assert all(re.fullmatch(mark + ending, reply.splitlines()[-1]) for reply in replies)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_verifier_is_shown_both_verdicts(name: str) -> None:
    turns = load_prompts(name).messages(Role.VERIFIER, **slots_of(Role.VERIFIER))
    assert {turn.content.splitlines()[-1] for turn in turns if turn.role == "assistant"} == {
        "Verdict: correct",
        "Verdict: wrong",
    }


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("role", Role)
def test_the_text_that_siblings_share_comes_before_the_text_that_differs(name: str, role: Role) -> None:
    order = ["question", "ground_truth", "solution", "answer", "verification"]
    marks = {slot: f"<{slot}>\0" for slot in SLOTS[role]}
    *shared, user = load_prompts(name).messages(role, **marks)
    assert not any("\0" in message.content for message in shared)
    places = [user.content.index(marks[slot]) for slot in order if slot in marks]
    assert places == sorted(places)
    assert all(user.content.count(mark) == 1 for mark in marks.values())


@pytest.mark.parametrize("name", SHIPPED)
def test_no_example_gives_away_a_question_of_the_quickstart(name: str) -> None:
    quickstart = Path(__file__).parent.parent / "configs" / "quickstart.jsonl"
    questions = [json.loads(line)["question"] for line in quickstart.read_text(encoding="utf-8").splitlines()]
    prompts = load_prompts(name)
    shown = "\n".join(turn.content for role in Role for turn in prompts.messages(role, **slots_of(role)))
    assert len(questions) >= 8
    assert not [question for question in questions if question in shown]


def test_a_role_that_would_always_see_the_same_text_is_refused(tmp_path: Path) -> None:
    said = refusal(written(tmp_path / "mine", generator__user_md="Answer the question."))
    assert "names none of question, so every generator would see the same text" in said


def test_a_prompt_cannot_differ_each_time_it_is_filled(tmp_path: Path) -> None:
    said = refusal(written(tmp_path / "mine", generator__user_md="{{ [1, 2]|random }} {{question}}"))
    assert "line 1 has 'random'" in said


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}{{question}}", "unknown slot m"),
        ("{{" + "(" * 5000 + "question" + ")" * 5000 + "}}", "nested too deep"),
        ("{{ question.__class__ }}", "line 1 has 'getattr'"),
        ("{{ question|attr('__class__') }}", "line 1 has 'attr'"),
        ("{{ question['upper'] }}", "line 1 has 'getitem'"),
        ("{{ question[question] }}", "line 1 has 'getitem'"),
        ("{{ question.center(10**10) }}", "line 1 has 'call'"),
        ("{% include '/etc/passwd' %}{{question}}", "line 1 has 'include'"),
        ("{% extends 'base' %}{{question}}", "line 1 has 'extends'"),
        (
            "{{question}}{% for a in 'x' * 10**9 %}{% for b in 'x' * 10**9 %}{% endfor %}{% endfor %}",
            "line 1 has 'for'",
        ),
        ("{{question}}{{ 'x' * 10**10 }}", "line 1 has 'mul'"),
        ("{{question}}{{ 2**10**10 }}", "line 1 has 'pow'"),
        ("{{question}}{{ '%0999999999d' % 1 }}", "line 1 has 'mod'"),
        ("{% set question = question ~ question %}{{question}}", "line 1 has 'assign'"),
        ("{{ question|center(10**10) }}", "line 1 has 'center'"),
        ("{{ question|indent(9999999999) }}", "line 1 has 'indent'"),
        ("{{ question|replace('t', 'tttttttt')|replace('t', 'tttttttt') }}", "line 1 has 'replace'"),
        ("{% filter center(9999999999) %}{{question}}{% endfilter %}", "line 1 has 'filterblock'"),
    ],
)
def test_a_template_that_would_do_harm_is_refused(tmp_path: Path, template: str, said: str) -> None:
    assert said in refusal(written(tmp_path / "mine", generator__user_md=template))


def test_a_template_may_test_and_transform_a_slot(tmp_path: Path) -> None:
    long = "question|trim|length > 5 and question[0] not in ('x', 'y')"
    text = f"{{% if {long} %}}{{{{question[-3:]}}}}{{% else %}}{{{{question|upper}}}}{{% endif %}}"
    prompts = load_prompts(str(written(tmp_path / "mine", generator__user_md=text)))
    assert [prompts.messages(Role.GENERATOR, question=each)[-1].content for each in ("long one", "abc")] == [
        "one",
        "ABC",
    ]


def test_a_missing_home_is_reported() -> None:
    with pytest.raises(PromptError, match="prompts = '~nobody-of-this-name'"):
        load_prompts("~nobody-of-this-name")


def test_links_and_special_files_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "linked")
    (tmp_path / "elsewhere.md").write_text("{{question}}")
    (folder / "generator/user.md").unlink()
    (folder / "generator/user.md").symlink_to(tmp_path / "elsewhere.md")
    assert "is a link; name the file that it leads to" in refusal(folder)
    (folder / "generator/user.md").unlink()
    with (folder / "generator/user.md").open("w") as file:
        file.truncate(5 * 2**20)
    assert "it is larger than 4 MiB" in refusal(folder)
