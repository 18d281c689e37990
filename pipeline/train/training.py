"""The use case behind `catvec train`: from a catalog to a folder that `catvec run --model` takes.

Whatever interrupts it, the same command goes on: pixels that were read and the last checkpoint are kept beside the
output until that is whole.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import shutil
import time
from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.errors import CatalogError, ConfigError
from pipeline.files import write_atomically
from pipeline.settings import ModelSettings, RunSettings
from pipeline.train.pairs import collect_pairs
from pipeline.train.work import RECORD, Work, find_finished, last_checkpoint, refuse_others, step_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pipeline.engine.stop import Stop
    from pipeline.models.source import ModelFiles
    from pipeline.progress import Progress
    from pipeline.records import PreprocessSpec
    from pipeline.settings import TrainSettings
    from pipeline.train.pairs import Pair, Pairs
    from pipeline.train.pixels import Pixels
    from pipeline.train.start import Start
    from pipeline.train.trainer import ContrastiveTrainer, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a training reports to, and how it was called."""

    progress: Progress
    stop: Stop
    tell: Callable[[str], None]
    command: str
    restart: bool = False
    stdin: BinaryIO | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came out; its fields are the keys of `catvec train --json`.

    `metrics` are those of the best step on products kept apart, empty when there are none; `is_new` says that it was
    not there before. `seconds` are those of this command, which may have gone on with what another began.
    """

    folder: str
    is_new: bool
    steps: int
    best_step: int
    seconds: float
    data: Mapping[str, Any]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the steps of one training share. `decisive` is what its outcome depends on, by the name of the option."""

    settings: TrainSettings
    around: Surroundings
    work: Work
    pairs: Pairs
    files: ModelFiles | None
    device: str
    precision: str
    rate: float
    decisive: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """One part's pairs whose images could be read, with the pixels of all."""

    pairs: Sequence[Pair]
    pixels: Pixels

    @property
    def titles(self) -> list[str]:
        return [pair.title for pair in self.pairs]

    @property
    def products(self) -> set[str]:
        return {pair.product_id for pair in self.pairs}


def train(settings: TrainSettings, output: Path, around: Surroundings) -> Trained:
    """Train a model on a catalog's pairs and leave it in `output`.

    Raises CatvecError, and KeyboardInterrupt when it was asked to stop: then the last step is kept.
    """
    began = time.monotonic()
    _require_packages(settings)
    _refuse_contradictions(settings)
    known = find_finished(output)
    job = _open_job(settings, Work(output=output), around)
    if known is not None:
        refuse_others(
            known["decisive"], job.decisive, f"{str(output)!r} was trained", "nothing is overwritten: choose another"
        )
        return _trained(known, output, is_new=False, seconds=time.monotonic() - began)
    job.work.begin(job.decisive, restart=around.restart)
    start = _open_start(job)
    learned, judged = _read_parts(job, start.preprocess)
    _check_titles(learned)
    trainer, finish = _prepare(job, start, learned, judged)
    _run(job, trainer)
    record = _record(job, trainer, learned, judged)
    _save(job, start, finish(), record, trainer, learned)
    _tell_left_out(job, learned, judged)
    return _trained(record, output, is_new=True, seconds=time.monotonic() - began)


def _require_packages(settings: TrainSettings) -> None:
    needed = ["accelerate", *(["peft"] if settings.tune == "lora" else [])]
    for name in needed:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"training needs the package {name}, which is not installed", hint="pip install 'catvec[train]'"
            )


def _refuse_contradictions(settings: TrainSettings) -> None:
    said = [entry.name for entry in fields(settings.new) if getattr(settings.new, entry.name) is not None]
    if settings.base is not None and said:
        raise ConfigError(f"{option(said[0])} is for a new model, but --from names one to go on with")
    if settings.base is None and settings.tune != "all":
        raise ConfigError(
            f"--tune is {settings.tune!r}, but without --from there is nothing to keep",
            hint="all of a new model learns",
        )


def option(name: str) -> str:
    """The option of a setting."""
    return "--" + name.replace("_", "-")


def _open_job(settings: TrainSettings, work: Work, around: Surroundings) -> _Job:
    from pipeline.catalog.open import read_catalog
    from pipeline.models.device import choose_device, choose_precision
    from pipeline.models.source import find_model
    from pipeline.train.start import shape_of
    from pipeline.train.tune import learning_rate

    around.progress.begin("reading the catalog")
    pairs = collect_pairs(read_catalog(settings.catalog, stdin=around.stdin), settings)
    device = choose_device(settings.device)
    files = None
    if settings.base is None:
        shape_of(settings.new)
    else:
        files = find_model(ModelSettings(model=settings.base, revision=settings.revision))
    precision = choose_precision(settings.precision, device)
    rate = settings.learning_rate or learning_rate(settings.tune, is_new=files is None)
    return _Job(
        settings=settings,
        around=around,
        work=work,
        pairs=pairs,
        files=files,
        device=device,
        precision=precision,
        rate=rate,
        decisive=_decisive(settings, pairs, files) | {"--precision": precision, "--learning-rate": rate},
    )


def _decisive(settings: TrainSettings, pairs: Pairs, files: ModelFiles | None) -> dict[str, Any]:
    names = (
        *("tune", "epochs", "batch_size", "weight_decay", "warmup", "max_grad_norm", "augment", "validation_share"),
        *("split_column", "evaluate_every", "patience", "seed"),
    )
    decisive = {option(name): getattr(settings, name) for name in names}
    new = {option(entry.name): getattr(settings.new, entry.name) for entry in fields(settings.new)}
    decisive |= {name: value for name, value in new.items() if value is not None}
    return decisive | {"--from": files.revision if files else None, "the catalog": pairs.digest()}


def _open_start(job: _Job) -> Start:
    """The model to begin with; a new one is made once, so that a training that goes on has the same."""
    from pipeline.train.start import open_start, write_new_model

    if job.files is not None:
        return open_start(job.files.folder, str(job.settings.base))
    if not job.work.start.is_dir():
        made = job.work.start.with_name("start.new")
        titles = [pair.title for pair in job.pairs.train]
        write_new_model(made, job.settings.new, titles, seed=job.settings.seed)
        made.rename(job.work.start)
    return open_start(job.work.start, str(job.work.start))


def _read_parts(job: _Job, preprocess: PreprocessSpec) -> tuple[_Part, _Part]:
    """What can be learned from, with a margin to crop from, and what is judged on, as `catvec run` prepares it."""
    from pipeline.train.pixels import enlarged

    spec = enlarged(preprocess) if job.settings.augment else preprocess
    return _read_part(job, job.pairs.train, spec, "train"), _read_part(
        job, job.pairs.validation, preprocess, "validation"
    )


def _read_part(job: _Job, pairs: Sequence[Pair], spec: PreprocessSpec, name: str) -> _Part:
    from pipeline.models.preprocess import fingerprint
    from pipeline.train.pixels import read_pixels

    settings = job.settings
    inputs = RunSettings(
        catalog=settings.catalog, fetch=settings.fetch, decode=settings.decode, decode_threads=settings.decode_threads
    )
    folder = job.work.folder / f"{name}-{job.pairs.digest()}-{fingerprint(spec)}"
    pixels = read_pixels([pair.image for pair in pairs], spec, folder, settings=inputs, progress=job.around.progress)
    return _Part(pairs=[pairs[row] for row in pixels.rows], pixels=pixels)


def _check_titles(learned: _Part) -> None:
    different = {title.casefold() for title in learned.titles}
    if len(different) < 2:
        only = f": all have the title {learned.titles[0]!r}" if different else ""
        raise CatalogError(
            f"{len(learned.pairs):,} images with {len(different)} different titles can be learned from, "
            f"expected 2 at least{only}",
            hint="images are told apart by their titles; --title-column names another column"
            if different
            else "catvec run CATALOG and catvec failures say what is wrong with the images",
        )


def _prepare(job: _Job, start: Start, learned: _Part, judged: _Part) -> tuple[ContrastiveTrainer, Callable[[], Any]]:
    """The trainer, and what gives the model as it is to be saved when it is done."""
    from pipeline.train.objective import Objective
    from pipeline.train.recall import choose_judge
    from pipeline.train.tokens import tokenize_titles
    from pipeline.train.trainer import Batches, Reporter, make_trainer, plan_steps
    from pipeline.train.tune import prepare

    settings, around = job.settings, job.around
    finish = prepare(start.model, settings.tune)
    objective = Objective(start.model, start.preprocess, device=job.device, chunk_size=settings.chunk_size)
    batches = Batches(
        images=learned.pixels.images,
        rows=learned.pixels.rows,
        titles=tokenize_titles(start.tokenizer, learned.titles),
        seed=settings.seed,
        augment=settings.augment,
    )
    judge = choose_judge(judged.pixels, judged.titles, start.tokenizer, job.device, settings.seed)
    plan = plan_steps(
        settings, len(learned.pairs), learning_rate=job.rate, precision=job.precision, device=job.device
    )
    _tell_plan(job, plan, learned, judge is not None)
    reporter = Reporter(objective, progress=around.progress, stop=around.stop, tell=around.tell)
    trainer = make_trainer(
        objective, batches, judge, plan, settings=settings, folder=job.work.checkpoints, reporter=reporter
    )
    return trainer, finish


def _tell_plan(job: _Job, plan: Plan, learned: _Part, has_judge: bool) -> None:
    tell = job.around.tell
    if plan.batch_size < job.settings.batch_size:
        tell(
            f"there are {plan.batch_size:,} images to learn from: they are one batch, of {job.settings.batch_size:,}"
        )
    if not has_judge:
        tell("too few products are kept apart to judge on: there is no Recall@1, and no early end")
    tell(
        f"learning from {len(learned.pairs):,} images of {len(learned.products):,} products: {plan.steps:,} steps of "
        f"{plan.batch_size:,} on {job.device} in {job.precision}"
    )


def _run(job: _Job, trainer: ContrastiveTrainer) -> None:
    """Train to the end, from the last checkpoint if there is one. Raises KeyboardInterrupt when asked to stop."""
    from pipeline.models.weights import quiet

    last = last_checkpoint(job.work.checkpoints)
    if last is not None:
        job.around.tell(f"going on after step {step_of(last):,}")
    job.around.progress.begin("training")
    with quiet(), job.around.stop.draining():
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if job.around.stop.is_asked() and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt


def _record(job: _Job, trainer: ContrastiveTrainer, learned: _Part, judged: _Part) -> dict[str, Any]:
    """What training.json and the model card say."""
    from pipeline.train.card import versions
    from pipeline.train.curves import rows_of
    from pipeline.train.recall import MOST_JUDGED

    state = trainer.state
    best_step = state.best_global_step or state.global_step
    best = next((row for row in rows_of(state.log_history) if row["step"] == best_step), {})
    bad_images = learned.pixels.codes + judged.pixels.codes
    return {
        "data": {
            "products learned from": len(learned.products),
            "images learned from": len(learned.pairs),
            "different titles": len(set(learned.titles)),
            "products kept apart": len(judged.products),
            "images judged on": min(len(judged.pairs), MOST_JUDGED),
            "products without a title": len(job.pairs.untitled),
            **{f"images left out: {code}": count for code, count in bad_images.items()},
            **{f"products left out: split says {part!r}": count for part, count in job.pairs.other_parts.items()},
            **{f"catalog rows left out: {code}": count for code, count in job.pairs.bad_rows.items()},
        },
        "metrics": {name: value for name, value in best.items() if "recall" in name},
        "steps": state.global_step,
        "best_step": best_step,
        "base": job.settings.base,
        "command": job.around.command,
        "settings": {name: value for name, value in job.decisive.items() if name != "the catalog"},
        "decisive": dict(job.decisive),
        "versions": versions(),
    }


def _save(
    job: _Job, start: Start, model: Any, record: dict[str, Any], trainer: ContrastiveTrainer, learned: _Part
) -> None:
    from pipeline.models.folder import INDEXES, SMALL_FILES
    from pipeline.models.trained import read_trained_products, write_trained_products
    from pipeline.models.weights import quiet
    from pipeline.train.card import write_card
    from pipeline.train.curves import rows_of, write_curves

    job.around.progress.begin("writing the model")
    folder = job.work.model
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model = model.cpu().half() if job.settings.save_precision == "fp16" else model.cpu()
    with quiet():
        model.save_pretrained(folder)
    for name in set(SMALL_FILES) - {"config.json", *INDEXES}:
        if (start.folder / name).is_file():
            shutil.copyfile(start.folder / name, folder / name)
    write_trained_products(folder, learned.products, before=read_trained_products(start.folder))
    write_curves(rows_of(trainer.state.log_history), folder, f"Training of {job.work.output.name}")
    record["has_chart"] = (folder / "curves.png").is_file()
    write_atomically(folder / "README.md", write_card(record))
    write_atomically(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False))
    job.work.finish()


def _tell_left_out(job: _Job, learned: _Part, judged: _Part) -> None:
    """Name what could not be used, beside the model: its own folder tells nobody what the shop sells."""
    left = [(left.product_id, left.code, left.detail) for part in (learned, judged) for left in part.pixels.left_out]
    left += [(product_id, "no_title", "the product has no title") for product_id in job.pairs.untitled]
    if not left:
        return
    path = job.work.output.with_name(f"{job.work.output.name}.left_out.csv")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("product_id", "code", "detail"), *left])
    write_atomically(path, text.getvalue())
    by_code = ", ".join(f"{count:,} {code}" for code, count in Counter(code for _, code, _ in left).most_common())
    first = ", ".join(product_id for product_id, _, _ in left[:3]) + (" …" if len(left) > 3 else "")
    job.around.tell(f"left out: {by_code} ({first}); all are named in {path}")


def _trained(record: Mapping[str, Any], output: Path, *, is_new: bool, seconds: float) -> Trained:
    return Trained(
        folder=str(output),
        is_new=is_new,
        steps=record["steps"],
        best_step=record["best_step"],
        seconds=round(seconds, 1),
        data=record["data"],
        metrics=record["metrics"],
    )
