"""catvec evaluate: what a model and its index are worth, measured by what the database holds."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pipeline.evaluate.demands import Demand, Scored
    from pipeline.evaluate.gallery import Question
    from pipeline.evaluate.page import Evaluated
    from pipeline.evaluate.tables import Table
    from pipeline.evaluate.zero_shot import ZeroShot

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the database is, and where the results go: options of every command here."""

    report: Report = None
    json: Json = False
    db: Database = None
    home: Home = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Which products are judged, and where their words are encoded: options of the commands that ask a model."""

    filter: Conditions = "{}"
    device: Device = "auto"
    precision: Precision = "auto"


@evaluate_app.command()
@with_settings(EvaluationSettings, DemandSettings, Encoding, Places)
def retrieval(
    model: ModelName = None,
    weights: Weights = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="ATTRIBUTE", help="report the products of each value separately")
    ] = None,
    **options: Any,
) -> None:
    """Measure how well titles find their products, and products their titles: recall, MRR and median rank."""
    from pipeline.evaluate.demands import refuse_other_groups
    from pipeline.evaluate.retrieval import SCORES, evaluate_retrieval, tabulate

    evaluation = _prepare(_read_settings(options), SCORES, options)
    refuse_other_groups(evaluation.demands, by)
    question = evaluation.question(model, weights, options)
    with evaluation.begun() as (url, progress):
        judged = evaluate_retrieval(url, question, by=by, progress=progress)
    evaluation.show(judged.retrieval, tabulate(judged.retrieval))
    evaluation.finish(judged, judged.retrieval)


@evaluate_app.command("zero-shot")
@with_settings(EvaluationSettings, DemandSettings, Encoding, Places)
def zero_shot(
    labels: Labels,
    attribute: LabelsAttribute = None,
    truth: Truth = None,
    chart: Chart = None,
    model: ModelName = None,
    weights: Weights = None,
    **options: Any,
) -> None:
    """Measure how many products get their true label without training: accuracy, F1 of each label, confusions."""
    from pipeline.charts import require_charts
    from pipeline.evaluate.zero_shot import choose_attribute, evaluate_zero_shot, known_scores, tabulate

    wanted = choose_attribute(labels, attribute)
    evaluation = _prepare(_read_settings(options), known_scores(wanted), options)
    if chart is not None:
        require_charts(chart)
    question = evaluation.question(model, weights, options)
    with evaluation.begun() as (url, progress):
        judged = evaluate_zero_shot(url, wanted, question, truth=truth, progress=progress)
    evaluation.show(judged.zero_shot, tabulate(judged.zero_shot))
    evaluation.finish(judged, judged.zero_shot, draw=partial(_draw, judged.zero_shot, chart))


def _draw(found: ZeroShot, chart: Path | None) -> None:
    from pipeline.charts import draw_confusion

    if chart is not None:
        draw_confusion(found, chart)
        say(f"the confusion matrix is in {chart}")


@evaluate_app.command()
@with_settings(EvaluationSettings, DemandSettings, Encoding, Places)
def compare(
    model_a: Annotated[str, typer.Argument(help="name of a model in the database")],
    model_b: Annotated[str, typer.Argument(help="name of another one")],
    weights_a: Annotated[str | None, typer.Option("--weights-a", help="where MODEL_A's weights are now")] = None,
    weights_b: Annotated[str | None, typer.Option("--weights-b", help="where MODEL_B's weights are now")] = None,
    **options: Any,
) -> None:
    """Measure two models by the same products, side by side, and how sure the difference is."""
    from pipeline.evaluate.compare import evaluate_comparison, tabulate
    from pipeline.evaluate.retrieval import SCORES

    evaluation = _prepare(_read_settings(options), SCORES, options)
    first = evaluation.question(model_a, weights_a, options)
    second = evaluation.question(model_b, weights_b, options)
    with evaluation.begun() as (url, progress):
        judged = evaluate_comparison(url, first, second, progress)
    evaluation.show(judged.comparison, tabulate(judged.comparison))
    evaluation.finish(judged, judged.comparison)


@evaluate_app.command()
@with_settings(DemandSettings, Places)
def index(
    model: ActiveModel = None,
    sample: Annotated[int, typer.Option("--sample", min=10, help="vectors of the table to search with")] = 200,
    **options: Any,
) -> None:
    """Measure how many of the truly nearest products searches find. `catvec index tune` mends it."""
    from pipeline.evaluate.ann import SCORES, evaluate_index, tabulate

    settings = EvaluationSettings(demands=take(DemandSettings, options))
    evaluation = _prepare(settings, SCORES, options)
    with evaluation.begun() as (url, progress):
        measured = evaluate_index(url, model, sample=sample, seed=settings.demands.seed, progress=progress)
    evaluation.show(measured, tabulate(measured))
    evaluation.finish(measured, measured)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the commands have in common: all of them measure, show, write a page, and hold to limits."""

    settings: EvaluationSettings
    demands: Sequence[Demand]
    places: Places

    def question(self, model: str | None, weights: str | None, options: Mapping[str, Any]) -> Question:
        """What is asked of a model. Raises ConfigError."""
        from pipeline.evaluate.gallery import Question

        encoding = take(Encoding, options)
        return Question(
            model=model,
            weights=weights,
            device=encoding.device,
            precision=encoding.precision,
            conditions=parse_filter(encoding.filter),
            include_trained=self.settings.include_trained,
            seed=self.settings.demands.seed,
        )

    @contextmanager
    def begun(self) -> Iterator[tuple[str, Progress]]:
        """The database and the progress, shown while the block measures."""
        progress = Progress()
        with (
            open_database(self.places.db, self.places.home) as url,
            interruptible(progress),
            progress_shown(progress),
        ):
            yield url, progress

    def show(self, measured: Scored, tables: Sequence[Table]) -> None:
        """Print what was measured."""
        if self.places.json:
            print_json(measured)
        else:
            for table in tables:
                print_table(table.headers, table.rows, right=table.right, spare=table.spare)
            for note in dict.fromkeys(table.note for table in tables if table.note):
                say(note)
        say(measured.summary)
        for warning in measured.warnings:
            say(f"warning: {warning}", level="warning")

    def finish(self, judged: Evaluated, measured: Scored, *, draw: Callable[[], None] | None = None) -> None:
        """Write the page and the chart, then hold to the limits, which are judged also when a picture fails."""
        from pipeline.evaluate.demands import find_unmet

        try:
            self._write_page(judged)
            if draw is not None:
                draw()
        finally:
            unmet = find_unmet(self.demands, measured.scores)
            for sentence in unmet:
                say(f"not good enough: {sentence}", level="error")
        if unmet:
            raise typer.Exit(3)

    def _write_page(self, judged: Evaluated) -> None:
        from pipeline.evaluate.page import Pictures, write_page

        report, settings = self.places.report, self.settings
        if report is not None:
            pictures = Pictures(image_root=settings.image_root, allow_private_hosts=settings.allow_private_hosts)
            missing = write_page(report, judged, pictures, seed=settings.demands.seed)
            say(f"the page is in {report}" + (f"; {missing}" if missing else ""))


def _read_settings(options: Mapping[str, Any]) -> EvaluationSettings:
    return take(EvaluationSettings, options, demands=take(DemandSettings, options))


def _prepare(settings: EvaluationSettings, known: Sequence[str], options: Mapping[str, Any]) -> Evaluation:
    """What cannot be reached or written is refused before any work. Raises ConfigError."""
    from pipeline.evaluate.demands import parse_demands
    from pipeline.report.page import check_report_path

    places = take(Places, options)
    if places.report is not None:
        check_report_path(places.report)
    return Evaluation(settings=settings, demands=parse_demands(settings.demands.fail_under, known), places=places)
