"""The report of an improvement: one HTML file that loads and runs nothing, and the same as Markdown."""

from pathlib import Path

from markupsafe import Markup

from malt.config.settings import Settings
from malt.datasets.pages.page import content_policy, page_environment, read_part
from malt.evaluation import report as evaluation_report
from malt.evaluation.card import percent, points
from malt.evaluation.report import make_bar, write_title
from malt.evaluation.summary import MEASURES, TITLES
from malt.improvement.decision import RoundDecision
from malt.improvement.figures import RoundFigures, SystemRow, place_worths, read_figures
from malt.improvement.summary import Improvement, count_rounds
from malt.sanitize import code_span, markdown_table

REPORT_FILE, PAGE_FILE, SUMMARY_FILE = "report.html", "README.md", "summary.json"
SHELF = "improvements"
_FOLDER = Path(__file__).parent


def write_report(done: Improvement, settings: Settings) -> Path:
    """Write what an improvement has come to so far, and return the page; the versions are what counts."""
    folder = settings.data_dir / SHELF / done.name
    folder.mkdir(parents=True, exist_ok=True)
    figures = read_figures(done)
    pages = {REPORT_FILE: render_page(figures), PAGE_FILE: write_markdown(figures),
             SUMMARY_FILE: done.model_dump_json(indent=2)}  # fmt: skip
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / REPORT_FILE


def render_page(figures: RoundFigures) -> str:
    gains, reach = place_worths(figures.worths)
    order = sorted(MEASURES, key=lambda measure: measure != figures.measure)
    bars = {
        write_title(measure, figures.chains): [
            (line, make_bar(line.title, line.cells[measure], votes=measure.endswith("_mv"))) for line in figures.lines
        ]
        for measure in order
    }
    style = read_part("marks.css") + read_part("page.css")
    style += (Path(evaluation_report.__file__).parent / "report.css").read_text(encoding="utf-8")
    return (
        page_environment(_FOLDER)
        .get_template("improvement.html.jinja")
        .render(
            figures=figures,
            done=figures.done,
            headline=TITLES[figures.measure],
            bars=bars,
            gains=gains,
            reach=reach,
            percent=percent,
            tell_gain=tell_gain,
            style=Markup(style),  # noqa: S704 - ours
            policy=content_policy(style, ""),
        )
    )


def render_markdown(done: Improvement) -> str:
    return write_markdown(read_figures(done))


def write_markdown(figures: RoundFigures) -> str:
    done = figures.done
    chains = "one chain" if figures.chains == 1 else f"{figures.chains} chains"
    asked = f"{figures.questions:,} held-out questions, {chains} each, 95 % intervals over questions"
    head = f"# {done.name}: {count_rounds(len(done.rounds))}"
    parts = [head, f"{done.sentence}. {asked}; {TITLES[figures.measure]} decided.", rounds_table(figures)]
    if figures.worths:
        told = [(worth.of, points(worth.compared)) for worth in figures.worths]
        parts += [f"What training gave ({done.closing}), in points:", markdown_table(("training of", "gain"), told)]
    parts += [systems_table(figures.closing)] if figures.closing else []
    for name, rows in figures.beside.items():
        parts += [f"On {name} ({done.beside[name]}):", systems_table(rows)]
    return "\n\n".join(parts) + "\n"


def rounds_table(figures: RoundFigures) -> str:
    head = ("", "models", *(write_title(measure, figures.chains) for measure in MEASURES), "cut off", "gain", "")
    rows = [
        (
            line.title,
            code_span(line.models) if line.models else "the config's",
            *(percent(line.cells[measure]) for measure in MEASURES),
            f"{100 * line.truncated:.1f}",
            tell_gain(line.judgement),
            "" if line.judgement is None else "kept" if line.judgement.is_kept else "not kept",
        )
        for line in figures.lines
    ]
    return markdown_table(head, rows)


def systems_table(rows: list[SystemRow]) -> str:
    titles = [*rows[0].cells]
    return markdown_table(
        ("system", *titles), [(code_span(row.system), *(percent(row.cells[title]) for title in titles)) for row in rows]
    )


def tell_gain(judgement: RoundDecision | None) -> str:
    if judgement is None or judgement.difference is None or judgement.low is None or judgement.high is None:
        return ""
    return f"{100 * judgement.difference:+.1f} ({100 * judgement.low:+.1f} to {100 * judgement.high:+.1f})"
