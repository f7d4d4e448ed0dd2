"""Writes the questions of configs/laptop.toml: python configs/laptop/questions.py

Ten kinds of one-step questions, in turn. Held-out ones have other names, objects and pairs of numbers; `unseen.jsonl`
has four kinds that are in no training question.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SEED = 7
TRAIN, HELD_OUT, UNSEEN = 80, 150, 60
PAIRS = [(small, large) for small in range(2, 7) for large in range(small + 1, 10)]


class Words(NamedTuple):
    """Names, things and numbers in the questions of one file."""

    names: str
    things: str
    pairs: Sequence[tuple[int, int]]
    """Numbers, the smaller one first."""


NAMES = "Ann Ben Carla David Emma Frank Grace Henry Irene Jack Karen Leo Maria Nick Olga Paul"
THINGS = "apples books pens coins stamps cards shells balls eggs plates cups stones"
OTHER_NAMES = "Rosa Sam Tina Umar Vera Walter Yara Zoe Adam Bella Chris Dora Eric Fiona"
OTHER_THINGS = "pears hats keys nuts marbles flowers candles spoons tickets boxes"

KINDS = {
    "{one} has {large} {thing}. {other} has {small} more than {one}. How many {thing} does {other} have?": "{sum}",
    "{one} has {large} {thing}. {other} has {small} fewer than {one}. How many {thing} does {other} have?": "{rest}",
    "{one} packs {small} {thing} an hour. How many {thing} does {one} pack in {large} hours?": "{product}",
    "{one} shares {product} {thing} equally among {small} friends. How many does each friend get?": "{large}",
    "There are {large} {thing} on the table and {small} on the floor. How many {thing} are there in all?": "{sum}",
    "{one} had {large} {thing} and lost {small} of them. How many {thing} are left?": "{rest}",
    "{one} has {first} {thing} and {other} has {second}. Who has more {thing}?": "{upper}",
    "{one} is {first} years old and {other} is {second}. Who is younger?": "{lower}",
    "{one} arrived at {first} and {other} arrived at {second}. Who arrived first?": "{lower}",
    "One bag holds {small} {thing}. How many {thing} do {large} bags hold?": "{product}",
}
"""Templates of questions, with those of their answers."""
UNSEEN_KINDS = {
    "{one} cuts {twice} {thing} in two equal heaps. How many {thing} are in one heap?": "{large}",
    "{one} read {small} pages a day for three days. How many pages is that in all?": "{thrice}",
    "{one} wants {large} {thing} and has {small}. How many more does {one} need?": "{rest}",
    "{one} is taller than {other}, and {other} is taller than {third}. Who is the shortest?": "{third}",
}


def make_rows(name: str, kinds: Mapping[str, str], words: Words, count: int, draw: random.Random) -> Iterator[str]:
    """Yield `count` different questions as lines of JSON, of each kind in turn."""
    asked = set[str]()
    while len(asked) < count:
        facts = draw_facts(words, draw)
        question, truth = (text.format(**facts) for text in list(kinds.items())[len(asked) % len(kinds)])
        if question not in asked:
            asked.add(question)
            yield json.dumps({"id": f"{name}-{len(asked)}", "question": question, "ground_truth": truth}) + "\n"


def draw_facts(words: Words, draw: random.Random) -> dict[str, str | int]:
    """Draw the values for one question's template."""
    one, other, third = draw.sample(words.names.split(), 3)
    small, large = draw.choice(words.pairs)
    first, second = draw.sample((small, large), 2)
    lower, upper = (one, other) if first < second else (other, one)
    people = {"one": one, "other": other, "third": third, "lower": lower, "upper": upper}
    given = {"small": small, "large": large, "first": first, "second": second, "twice": 2 * large, "thrice": 3 * small}
    derived = {"sum": small + large, "rest": large - small, "product": small * large}
    return {**people, **given, **derived, "thing": draw.choice(words.things.split())}


def main() -> None:
    """Write the three files beside this one."""
    draw, folder = random.Random(SEED), Path(__file__).parent  # noqa: S311 - no secret
    pairs = draw.sample(PAIRS, len(PAIRS))
    half = len(pairs) // 2
    known, others = Words(NAMES, THINGS, pairs[:half]), Words(OTHER_NAMES, OTHER_THINGS, pairs[half:])
    held_out, unseen = (KINDS, others, HELD_OUT), (UNSEEN_KINDS, others, UNSEEN)
    files = {"train": (KINDS, known, TRAIN), "heldout": held_out, "unseen": unseen}
    for name, what in files.items():
        (folder / f"{name}.jsonl").write_text("".join(make_rows(name, *what, draw)))


if __name__ == "__main__":
    main()
