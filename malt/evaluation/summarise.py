"""Computation of a summary from an evaluation's table alone, so that anybody can reproduce it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from malt.config.evaluate import Measure
from malt.config.spec import RunSpec
from malt.datasets.stats.diagnostics import Truth, is_same_answer
from malt.evaluation import statistics
from malt.evaluation.statistics import Scores, rank_models
from malt.evaluation.summary import (
    MEASURES,
    AnswerUsage,
    Cell,
    Choice,
    Compared,
    Control,
    EqualTokens,
    Flips,
    Refining,
    Summary,
    SystemSummary,
    Verdicts,
)
from malt.evaluation.systems import find_baseline, list_entrants, require_evaluate
from malt.evaluation.table import Grid, Sheet, make_sheets, shares

if TYPE_CHECKING:
    import pandas as pd


def summarise(spec: RunSpec, rows: "pd.DataFrame") -> Summary:
    evaluate, baseline = require_evaluate(spec), find_baseline(spec)
    sheets = make_sheets(spec, rows, "chain")
    scores = {measure: {name: sheet.scores(measure) for name, sheet in sheets.items()} for measure in MEASURES}
    differences = {measure: _compare_all(scores[measure], baseline) for measure in MEASURES}
    controls, votes = make_sheets(spec, rows, "control"), make_sheets(spec, rows, "votes")
    compared = scores[evaluate.measure]
    systems = {
        name: _summarise_system(sheet, votes.get(name), _score_control(controls.get(name), evaluate.temperature))
        for name, sheet in sheets.items()
    }
    ways = list_ways(systems, evaluate.chains, max(len(evaluate.seeds), 1))
    return Summary(
        evaluation=spec.name,
        questions=rows["question_id"].nunique(),
        chains=evaluate.chains,
        seeds=evaluate.seeds,
        baseline=baseline,
        measure=evaluate.measure,
        systems=systems,
        differences=differences[evaluate.measure],
        all_differences={**differences},
        frontier=_find_frontier(ways),
        tournament=rank_models(list_entrants(spec), compared),
        dropped=_find_dropped(sheets),
        smallest_difference=_find_smallest_differences(compared, baseline),
    )


def _find_dropped(sheets: Mapping[str, Sheet]) -> dict[str, int]:
    """Return the systems that a race dropped, and how many questions each of them was asked."""
    counts = {name: sheet.rows["question_id"].nunique() for name, sheet in sheets.items()}
    return {name: count for name, count in counts.items() if count < len(sheets[name].questions)}


def _summarise_system(sheet: Sheet, votes: Sheet | None, control: Control | None) -> SystemSummary:
    """Compute a system's figures; `votes` are those of the equal-tokens comparison."""
    pipeline = _measure_usage(sheet, "", "ma")
    return SystemSummary(
        **{measure: statistics.estimate(sheet.scores(measure)) for measure in MEASURES},
        tokens=pipeline.tokens,
        cost_usd=pipeline.cost_usd,
        single=_measure_usage(sheet, "generator_", "sa"),
        pipeline=pipeline,
        flips=_count_flips(sheet),
        refining=_judge_refining(_count_flips(sheet)),
        verdicts=_count_verdicts(sheet),
        by_seed=_score_seeds(sheet),
        equal_tokens=_compare_equal_tokens(sheet, votes),
        control=control,
    )


def _score_seeds(sheet: Sheet) -> dict[str, dict[str, float | None]]:
    """Return the accuracies of each seed; nothing where there is only one."""
    if len(sheet.seeds) == 1:
        return {}
    truths = {measure: sheet.by_seed(measure) for measure in MEASURES}
    return {
        str(seed): {measure: statistics.estimate(shares(truths[measure][:, index])).accuracy for measure in MEASURES}
        for index, seed in enumerate(sheet.seeds)
    }


def _compare_all(scores: Mapping[str, Scores], baseline: str) -> dict[str, Compared]:
    """Compare every system with the baseline; p-values are corrected for the number of systems."""
    differences = {
        name: statistics.paired_difference(own, scores[baseline]) for name, own in scores.items() if name != baseline
    }
    known = {name: difference for name, difference in differences.items() if difference is not None}
    corrected = statistics.holm({name: difference.p for name, difference in known.items()})
    return {name: Compared(**difference._asdict(), p_holm=corrected[name]) for name, difference in known.items()}


def _find_smallest_differences(scores: Mapping[str, Scores], baseline: str) -> dict[str, float | None]:
    """Return the smallest detectable differences: at the usual discordance, and at each system's with the baseline."""
    questions = len(next(iter(scores.values()), np.empty(0)))
    smallest = {"at 20 % discordance": statistics.smallest_difference(questions)}
    for name, own in scores.items():
        discordance = statistics.discordance(own, scores[baseline])
        if name != baseline and discordance:
            smallest[name] = statistics.smallest_difference(questions, discordance)
    return smallest


def _measure_usage(sheet: Sheet, part: str, measure: Measure) -> AnswerUsage:
    """Add up the usage of answers, by the generator alone or by whole chains."""
    prompt, completion = _total(sheet.rows[f"{part}prompt_tokens"]), _total(sheet.rows[f"{part}completion_tokens"])
    cost, seconds = _total(sheet.rows[f"{part}cost_usd"]), float(sheet.rows[f"{part}latency_s"].sum())
    tokens = None if prompt is None or completion is None else int(prompt + completion)
    right = int(sum(truth is True for truth in sheet.by_seed(measure).flat))
    questions = sheet.rows["question_id"].nunique()
    return AnswerUsage(
        tokens=tokens,
        completion_tokens=None if completion is None else int(completion),
        cost_usd=cost,
        seconds=seconds,
        tokens_per_question=_ratio(tokens, questions),
        cost_per_question=_ratio(cost, questions),
        seconds_per_question=seconds / questions,
        tokens_per_right=_ratio(tokens, right),
        cost_per_right=_ratio(cost, right),
        seconds_per_right=_ratio(seconds, right),
    )


def _total(values: "pd.Series[float]") -> float | None:
    """Return the sum; None where a value is unknown."""
    return None if values.isna().any() else float(values.sum())


def _ratio(part: float | None, whole: float) -> float | None:
    """Return the quotient; None where `part` is unknown, or `whole` is zero."""
    return part / whole if part is not None and whole else None


def _count_pairs(before: Grid, after: Grid) -> dict[tuple[Truth, Truth], int]:
    counted: dict[tuple[Truth, Truth], int] = {}
    for pair in zip(before.flat, after.flat, strict=True):
        counted[pair] = counted.get(pair, 0) + 1
    return counted


def _count_flips(sheet: Sheet) -> Flips:
    counts = _count_pairs(sheet.single, sheet.final)
    answers = zip(sheet.grid("generator_answer").flat, sheet.grid("answer").flat, strict=True)
    same = [is_same_answer(first, last) for first, last in answers if first is not None and last is not None]
    return Flips(
        wrong_to_right=counts.get((False, True), 0),
        right_to_right=counts.get((True, True), 0),
        wrong_to_wrong=counts.get((False, False), 0),
        right_to_wrong=counts.get((True, False), 0),
        unchanged=_ratio(sum(same), len(same)),
    )


def _judge_refining(flips: Flips) -> Refining:
    """Judge whether refining pays: whether it fixes more answers than it breaks."""
    wrong, right = flips.wrong_to_right + flips.wrong_to_wrong, flips.right_to_right + flips.right_to_wrong
    ecr, eir = _ratio(flips.wrong_to_right, wrong), _ratio(flips.right_to_wrong, right)
    threshold = _ratio(right, wrong)
    pays = None if wrong + right == 0 else flips.wrong_to_right > flips.right_to_wrong
    return Refining(ecr=ecr, eir=eir, threshold=threshold, pays=pays, sentence=_write_rule(ecr, eir, threshold, pays))


def _write_rule(ecr: float | None, eir: float | None, threshold: float | None, pays: bool | None) -> str:
    """Write the rule ECR/EIR > Acc/(1 - Acc) with this system's figures."""
    if ecr is None or eir is None or threshold is None:
        return "Whether refining pays cannot be said: the generator's answers are all right, or all wrong, or unknown."
    mends = f"Refining mends {ecr:.1%} of wrong answers (ECR) and spoils {eir:.1%} of right ones (EIR)"
    if not eir:
        return f"{mends}: it pays as long as it mends any." if pays else f"{mends}: it changes nothing."
    compared = "above" if pays else "not above"
    return (
        f"{mends}: ECR/EIR = {ecr / eir:.2f} is {compared} Acc/(1 − Acc) = {threshold:.2f}, "  # noqa: RUF001 - a minus
        f"so refining {'pays' if pays else 'does not pay'}."
    )


def _count_verdicts(sheet: Sheet) -> Verdicts:
    counts = _count_pairs(sheet.grid("verdict"), sheet.single)
    verdicts_on_right = {verdict: counts.get((verdict, True), 0) for verdict in (True, False)}
    verdicts_on_wrong = {verdict: counts.get((verdict, False), 0) for verdict in (True, False)}
    stated = sum(verdicts_on_right.values()) + sum(verdicts_on_wrong.values())
    return Verdicts(
        stated=stated,
        unstated=counts.get((None, True), 0) + counts.get((None, False), 0),
        sensitivity=_ratio(verdicts_on_wrong[False], sum(verdicts_on_wrong.values())),
        specificity=_ratio(verdicts_on_right[True], sum(verdicts_on_right.values())),
        agreement=_ratio(verdicts_on_wrong[False] + verdicts_on_right[True], stated),
    )


def _compare_equal_tokens(sheet: Sheet, votes: Sheet | None) -> EqualTokens | None:
    """Compare the pipeline's vote with that of a single agent with as many tokens."""
    if votes is None:
        return None
    single, pipeline = votes.scores("sa_mv"), sheet.scores("ma_mv")
    compared = _compare_all({"pipeline": pipeline, "single": single}, "single")
    return EqualTokens(
        votes=votes.chains,
        vote=statistics.estimate(single),
        completion_tokens=_measure_usage(votes, "generator_", "sa").completion_tokens,
        pipeline_completion_tokens=_measure_usage(sheet, "", "ma").completion_tokens,
        pipeline_ahead=compared.get("pipeline"),
    )


def _score_control(sheet: Sheet | None, temperature: float | None) -> Control | None:
    if sheet is None or temperature is None:
        return None
    single, pipeline = statistics.estimate(sheet.scores("sa")), statistics.estimate(sheet.scores("ma"))
    return Control(temperature=temperature, sa=single, ma=pipeline)


# The cost-accuracy frontier.


def _find_frontier(ways: Sequence[Choice]) -> tuple[Choice, ...]:
    """Return the ways of answering that no cheaper one equals in accuracy, from the cheapest on."""
    best: list[Choice] = []
    for way in sorted(ways, key=lambda each: (each.tokens, -(each.cell.accuracy or 0.0))):
        if not best or (way.cell.accuracy or 0.0) > (best[-1].cell.accuracy or 0.0):
            best.append(way)
    return tuple(best)


def list_ways(systems: Mapping[str, SystemSummary], chains: int, repeats: int) -> list[Choice]:
    """Return every system's ways of answering, alone and as a pipeline, singly and by vote."""
    return [way for name, system in systems.items() for way in _list_ways(name, system, chains, repeats)]


def _list_ways(name: str, system: SystemSummary, chains: int, repeats: int) -> Iterator[Choice]:
    single, pipeline = system.single, system.pipeline
    ways: list[tuple[str, AnswerUsage, int, Cell]] = [
        ("SA", single, chains * repeats, system.sa),
        (f"SA+MV@{chains}", single, repeats, system.sa_mv),
        ("MA", pipeline, chains * repeats, system.ma),
        (f"MA+MV@{chains}", pipeline, repeats, system.ma_mv),
    ]
    if chains == 1:  # a vote of one chain is its answer
        ways = [each for each in ways if "MV" not in each[0]]
    for way, usage, answers, cell in ways:
        if usage.completion_tokens is not None and cell.accuracy is not None:
            tokens = usage.completion_tokens / cell.questions / answers
            cost = None if usage.cost_usd is None else usage.cost_usd / cell.questions / answers
            yield Choice(system=name, way=way, tokens=tokens, cost_usd=cost, cell=cell)
    equal = system.equal_tokens
    if equal is not None and equal.completion_tokens is not None and equal.vote.accuracy is not None:
        tokens = equal.completion_tokens / equal.vote.questions / repeats
        yield Choice(system=name, way=f"SA+MV@{equal.votes}", tokens=tokens, cost_usd=None, cell=equal.vote)
