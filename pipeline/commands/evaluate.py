"""catvec evaluate: what a model and its index are worth, measured by what the database holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.live import interruptible, progress_shown
from pipeline.commands.options import (
    ActiveModel,
    Conditions,
    Database,
    Device,
    Home,
    Json,
    ModelName,
    Precision,
    Weights,
    open_database,
    take,
    with_settings,
)
from pipeline.commands.terminal import parse_filter, print_json, print_table, say
from pipeline.progress import Progress
from pipeline.settings import DemandSettings, EvaluationSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.evaluate.demands import Demand, Scored
    from pipeline.evaluate.page import Evaluated
    from pipeline.evaluate.tables import Table

evaluate_app = typer.Typer(help="Measure what a model and its index are worth, by what the database holds.")

Report = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="HTML page to write, with hits and misses as pictures")
]

Labels = Annotated[Path, typer.Argument(metavar="LABELS", help="YAML or JSON file of attributes with their labels")]
LabelsAttribute = Annotated[
    str | None, typer.Option("--attribute", metavar="NAME", help="the file's attribute to judge, if it has several")
]
Truth = Annotated[
    str | None,
    typer.Option(
        "--truth", metavar="NAME", help="column or attribute of what products truly are; else as --attribute"
    ),
]
Chart = Annotated[
    Path | None, typer.Option("--chart", metavar="FILE", help="draw the confusion matrix, .png or .svg")
]


@evaluate_app.command()
@with_settings(EvaluationSettings, DemandSettings)
def retrieval(
    model: ModelName = None,
    weights: Weights = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="ATTRIBUTE", help="report the products of each value separately")
    ] = None,
    filter: Conditions = "{}",  # noqa: A002 - the option's name
    device: Device = "auto",
    precision: Precision = "auto",
    report: Report = None,
    json: Json = False,
    db: Database = None,
    home: Home = None,
    **options: Any,
) -> None:
    """Measure how well titles find their products, and products their titles: recall, MRR and median rank."""
    from pipeline.evaluate.gallery import Question
    from pipeline.evaluate.retrieval import SCORES, evaluate_retrieval, tabulate

    settings = take(EvaluationSettings, options, demands=take(DemandSettings, options))
    demands = _prepare(settings, SCORES, report)
    question = Question(
        model=model, weights=weights, device=device, precision=precision, **_judging(settings, filter)
    )
    progress = Progress()
    with open_database(db, home) as url, interruptible(progress), progress_shown(progress):
        judged = evaluate_retrieval(url, question, by=by, progress=progress)
    _show(judged.retrieval, tabulate(judged.retrieval), json=json)
    _finish(judged, judged.retrieval, report, settings, demands)


@evaluate_app.command("zero-shot")
@with_settings(EvaluationSettings, DemandSettings)
def zero_shot(
    labels: Labels,
    attribute: LabelsAttribute = None,
    truth: Truth = None,
    chart: Chart = None,
    model: ModelName = None,
    weights: Weights = None,
    filter: Conditions = "{}",  # noqa: A002 - the option's name
    device: Device = "auto",
    precision: Precision = "auto",
    report: Report = None,
    json: Json = False,
    db: Database = None,
    home: Home = None,
    **options: Any,
) -> None:
    """Measure how many products get their true label without training: accuracy, F1 of each label, confusions."""
    from pipeline.charts import draw_confusion, require_charts
    from pipeline.evaluate.gallery import Question
    from pipeline.evaluate.zero_shot import SCORES, choose_attribute, evaluate_zero_shot, tabulate

    settings = take(EvaluationSettings, options, demands=take(DemandSettings, options))
    demands = _prepare(settings, SCORES, report)
    if chart is not None:
        require_charts(chart)
    wanted = choose_attribute(labels, attribute)
    question = Question(
        model=model, weights=weights, device=device, precision=precision, **_judging(settings, filter)
    )
    progress = Progress()
    with open_database(db, home) as url, interruptible(progress), progress_shown(progress):
        judged = evaluate_zero_shot(url, wanted, question, truth=truth, progress=progress)
    _show(judged.zero_shot, tabulate(judged.zero_shot), json=json)
    if chart is not None:
        draw_confusion(judged.zero_shot, chart)
        say(f"the confusion matrix is in {chart}")
    _finish(judged, judged.zero_shot, report, settings, demands)


@evaluate_app.command()
@with_settings(EvaluationSettings, DemandSettings)
def compare(
    model_a: Annotated[str, typer.Argument(help="name of a model in the database")],
    model_b: Annotated[str, typer.Argument(help="name of another one")],
    weights_a: Annotated[str | None, typer.Option("--weights-a", help="where MODEL_A's weights are now")] = None,
    weights_b: Annotated[str | None, typer.Option("--weights-b", help="where MODEL_B's weights are now")] = None,
    filter: Conditions = "{}",  # noqa: A002 - the option's name
    device: Device = "auto",
    precision: Precision = "auto",
    report: Report = None,
    json: Json = False,
    db: Database = None,
    home: Home = None,
    **options: Any,
) -> None:
    """Measure two models by the same products, side by side, and how sure the difference is."""
    from pipeline.evaluate.compare import evaluate_comparison, tabulate
    from pipeline.evaluate.gallery import Question
    from pipeline.evaluate.retrieval import SCORES

    settings = take(EvaluationSettings, options, demands=take(DemandSettings, options))
    demands = _prepare(settings, SCORES, report)
    shared: dict[str, Any] = {"device": device, "precision": precision} | _judging(settings, filter)
    first = Question(model=model_a, weights=weights_a, **shared)
    second = Question(model=model_b, weights=weights_b, **shared)
    progress = Progress()
    with open_database(db, home) as url, interruptible(progress), progress_shown(progress):
        judged = evaluate_comparison(url, first, second, progress)
    _show(judged.comparison, tabulate(judged.comparison), json=json)
    _finish(judged, judged.comparison, report, settings, demands)


@evaluate_app.command()
@with_settings(DemandSettings)
def index(
    model: ActiveModel = None,
    sample: Annotated[int, typer.Option("--sample", min=10, help="vectors of the table to search with")] = 200,
    report: Report = None,
    json: Json = False,
    db: Database = None,
    home: Home = None,
    **options: Any,
) -> None:
    """Measure how many of the truly nearest products searches find. `catvec index tune` mends it."""
    from pipeline.evaluate.ann import SCORES, evaluate_index, tabulate

    settings = EvaluationSettings(demands=take(DemandSettings, options))
    demands = _prepare(settings, SCORES, report)
    progress = Progress()
    with open_database(db, home) as url, interruptible(progress), progress_shown(progress):
        measured = evaluate_index(url, model, sample=sample, seed=settings.demands.seed, progress=progress)
    _show(measured, tabulate(measured), json=json)
    _finish(measured, measured, report, settings, demands)


def _prepare(settings: EvaluationSettings, known: Sequence[str], report: Path | None) -> list[Demand]:
    """What is to be reached, refused before any work when it cannot be."""
    from pipeline.evaluate.demands import parse_demands
    from pipeline.report.page import check_report_path

    if report is not None:
        check_report_path(report)
    return parse_demands(settings.demands.fail_under, known)


def _judging(settings: EvaluationSettings, conditions: str) -> dict[str, Any]:
    """What a Question says of the products and the resampling."""
    return {
        "conditions": parse_filter(conditions),
        "include_trained": settings.include_trained,
        "seed": settings.demands.seed,
    }


def _show(measured: Scored, tables: Sequence[Table], *, json: bool) -> None:
    if json:
        print_json(measured)
    else:
        for table in tables:
            print_table(table.headers, table.rows, right=table.right, spare=table.spare)
    say(measured.summary)
    for warning in measured.warnings:
        say(f"warning: {warning}", level="warning")


def _finish(
    judged: Evaluated, measured: Scored, report: Path | None, settings: EvaluationSettings, demands: Sequence[Demand]
) -> None:
    """Write the page, after all that was measured is said, because it may fail; then hold to the limits."""
    from pipeline.evaluate.demands import find_unmet
    from pipeline.evaluate.page import Pictures, write_page

    if report is not None:
        pictures = Pictures(image_root=settings.image_root, allow_private_hosts=settings.allow_private_hosts)
        missing = write_page(report, judged, pictures, seed=settings.demands.seed)
        say(f"the page is in {report}" + (f"; {missing}" if missing else ""))
    unmet = find_unmet(demands, measured.scores)
    for sentence in unmet:
        say(f"not good enough: {sentence}", level="error")
    if unmet:
        raise typer.Exit(3)
