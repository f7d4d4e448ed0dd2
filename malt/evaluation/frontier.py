"""The cost-accuracy frontier: of all ways of answering, those that nothing beats at their price."""

from collections.abc import Iterator, Mapping, Sequence

from malt.evaluation.summary import AnswerUsage, Cell, Choice, SystemSummary


def find_frontier(ways: Sequence[Choice]) -> tuple[Choice, ...]:
    """Return the ways that no other one beats: none is as often right for fewer tokens; from the cheapest on."""
    best: list[Choice] = []
    for way in sorted(ways, key=lambda each: (each.tokens, -(each.cell.accuracy or 0.0))):
        if not best or (way.cell.accuracy or 0.0) > (best[-1].cell.accuracy or 0.0):
            best.append(way)
    return tuple(best)


def choose(frontier: Sequence[Choice], most_tokens: float) -> Choice | None:
    """Return the most accurate way within a budget of completion tokens a question; None where none is."""
    return next((way for way in reversed(frontier) if way.tokens <= most_tokens), None)


def list_ways(systems: Mapping[str, SystemSummary], chains: int, repeats: int) -> list[Choice]:
    """Return every system's ways of answering, alone and as a pipeline, singly and by vote."""
    return [way for name, system in systems.items() for way in _list_ways(name, system, chains, repeats)]


def _list_ways(name: str, system: SystemSummary, chains: int, repeats: int) -> Iterator[Choice]:
    single, pipeline = system.single, system.pipeline
    offered: list[tuple[str, AnswerUsage, int, Cell]] = [
        ("SA", single, chains * repeats, system.sa),
        (f"SA+MV@{chains}", single, repeats, system.sa_mv),
        ("MA", pipeline, chains * repeats, system.ma),
        (f"MA+MV@{chains}", pipeline, repeats, system.ma_mv),
    ]
    for way, usage, parts, cell in offered:
        if usage.completion_tokens is not None and cell.accuracy is not None:
            tokens = usage.completion_tokens / cell.questions / parts
            cost = None if usage.cost_usd is None else usage.cost_usd / cell.questions / parts
            yield Choice(system=name, way=way, tokens=tokens, cost_usd=cost, cell=cell)
    equal = system.equal_tokens
    if equal is not None and equal.completion_tokens is not None and equal.vote.accuracy is not None:
        tokens = equal.completion_tokens / equal.vote.questions / repeats
        yield Choice(system=name, way=f"SA+MV@{equal.votes}", tokens=tokens, cost_usd=None, cell=equal.vote)
