"""Report of an improvement: its figures, read from its evaluations, as one HTML file that loads and runs nothing."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from malt.config.evaluate import Measure
from malt.config.roles import PLAYERS
from malt.config.settings import Settings
from malt.datasets.pages.page import render_page
from malt.evaluation.card import percent, points
from malt.evaluation.report import make_bar, place_gains, read_style
from malt.evaluation.summary import MEASURES, TITLES, Cell, Compared, Summary, is_vote, write_title
from malt.evaluation.version import EvaluationVersion, open_evaluation
from malt.files import make_private_folder
from malt.grading.grades import Outcome
from malt.improvement.rounds import CANDIDATE, CURRENT, TRAINED, UNTRAINED, Improvement, RoundDecision, without
from malt.sanitize import code_span, markdown_table
from malt.text import count_noun

REPORT_FILE, PAGE_FILE, SUMMARY_FILE = "report.html", "README.md", "summary.json"
SHELF = "improvements"
_FOLDER = Path(__file__).parent

Systems = Mapping[str, Mapping[str, Cell]]
"""Accuracies of a closing evaluation, by system and by title of the measure."""


class Line(NamedTuple):
    """Roles of one round, and their accuracies."""

    title: str
    models: str
    """Model version that plays; empty for the config's own roles."""
    cells: Mapping[Measure, Cell]
    truncated: float
    """Share of final texts that were cut off."""
    judgement: RoundDecision | None
    """None for the roles that the first round began with."""

    @property
    def kept(self) -> str:
        return "" if self.judgement is None else "kept" if self.judgement.is_kept else "not kept"

    @property
    def figures(self) -> tuple[str, ...]:
        """Accuracies, share of texts cut off, gain, and whether the round was kept."""
        cells = (percent(self.cells[measure]) for measure in MEASURES)
        return (*cells, f"{100 * self.truncated:.1f} %", self.judgement.points if self.judgement else "", self.kept)


class RoundFigures(NamedTuple):
    """Figures of the rounds, for the page, Markdown and terminal."""

    done: Improvement
    measure: Measure
    chains: int
    questions: int
    lines: list[Line]
    closing: Systems
    worths: Mapping[str, Compared]
    """Gain from training all roles, and from training each one."""
    beside: Mapping[str, Systems]


def read_figures(done: Improvement) -> RoundFigures:
    versions = [open_evaluation(each.evaluation) for each in done.rounds]
    last = versions[-1].summary
    closing = open_evaluation(done.closing).summary if done.closing else None
    return RoundFigures(
        done=done,
        measure=last.measure,
        chains=last.chains,
        questions=last.questions,
        lines=list(_list_lines(done, versions)),
        closing=_list_systems(closing) if closing else {},
        worths=dict(_list_worths(closing)) if closing else {},
        beside={name: _list_systems(open_evaluation(each).summary) for name, each in done.beside.items()},
    )


def _list_lines(done: Improvement, versions: list[EvaluationVersion]) -> Iterator[Line]:
    """Yield the roles that the first round began with, then what each round trained."""
    yield Line("before", "", *_read_system(versions[0], CURRENT), None)
    for each, version in zip(done.rounds, versions, strict=True):
        yield Line(f"round {each.number}", each.models, *_read_system(version, CANDIDATE), each.judgement)


def _read_system(version: EvaluationVersion, system: str) -> tuple[Mapping[Measure, Cell], float]:
    """Return a system's accuracies by measure, and the share of its final texts that were cut off."""
    answers = version.answers
    outcomes = answers[(answers["system"] == system) & (answers["kind"] == "chain")]["outcome"]
    cells = {measure: getattr(version.summary.systems[system], measure) for measure in MEASURES}
    return cells, float((outcomes == Outcome.TRUNCATED).mean())


def _list_systems(summary: Summary) -> Systems:
    return {name: dict(system.cells(summary.chains)) for name, system in summary.systems.items()}


def _list_worths(summary: Summary) -> Iterator[tuple[str, Compared]]:
    """Yield the gain from training all roles, and from training each: the trained roles less those without it."""
    lacking = {"all roles": UNTRAINED, **{f"the {role.value}": without(role.value) for role in PLAYERS}}
    for of, system in lacking.items():
        found = summary.differences.get(system)
        if found is not None and summary.baseline == TRAINED:
            turned = {"difference": -found.difference, "low": -found.high, "high": -found.low}
            yield of, found.model_copy(update=turned)


def write_report(done: Improvement, settings: Settings) -> Path:
    """Write the pages of an improvement so far, from its versions; return the HTML page."""
    folder = settings.data_dir / SHELF / done.name
    make_private_folder(folder)
    figures = read_figures(done)
    pages = {REPORT_FILE: _render_page(figures), PAGE_FILE: _write_markdown(figures),
             SUMMARY_FILE: done.model_dump_json(indent=2)}  # fmt: skip
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / REPORT_FILE


def _render_page(figures: RoundFigures) -> str:
    gains, reach = place_gains(figures.worths)
    order = sorted(MEASURES, key=lambda measure: measure != figures.measure)
    bars = {
        write_title(measure, figures.chains): [
            (line, make_bar(line.title, line.cells[measure], votes=is_vote(measure))) for line in figures.lines
        ]
        for measure in order
    }
    return render_page(
        "improvement.html.jinja",
        read_style(),
        "",
        _FOLDER,
        figures=figures,
        done=figures.done,
        headline=TITLES[figures.measure],
        bars=bars,
        gains=gains,
        reach=reach,
        percent=percent,
    )


def render_markdown(done: Improvement) -> str:
    return _write_markdown(read_figures(done))


def _write_markdown(figures: RoundFigures) -> str:
    done = figures.done
    chains = count_noun(figures.chains, "chain")
    asked = f"{figures.questions:,} held-out questions, {chains} each, 95 % intervals over questions"
    head = f"# {done.name}: {count_noun(len(done.rounds), 'round')}"
    parts = [head, f"{done.sentence}. {asked}; {TITLES[figures.measure]} decided.", _rounds_table(figures)]
    if figures.worths:
        gains = [(of, points(worth.difference, worth.low, worth.high)) for of, worth in figures.worths.items()]
        parts += [f"Gain from training ({done.closing}), in points:", markdown_table(("training of", "gain"), gains)]
    parts += [_systems_table(figures.closing)] if figures.closing else []
    for name, systems in figures.beside.items():
        parts += [f"On {name} ({done.beside[name]}):", _systems_table(systems)]
    return "\n\n".join(parts) + "\n"


def _rounds_table(figures: RoundFigures) -> str:
    head = ("", "models", *(write_title(measure, figures.chains) for measure in MEASURES), "cut off", "gain", "")
    lines = figures.lines
    rows = [(each.title, code_span(each.models) if each.models else "the config's", *each.figures) for each in lines]
    return markdown_table(head, rows)


def _systems_table(systems: Systems) -> str:
    head = ("system", *next(iter(systems.values())))
    return markdown_table(head, [(code_span(name), *map(percent, cells.values())) for name, cells in systems.items()])
