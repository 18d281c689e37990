"""The use case behind `catvec train`: from a catalog to a folder that `catvec run --model` takes.

Whatever interrupts it, the same command goes on: pixels that were read and the last checkpoint are kept beside the
output until that is whole.
"""

from __future__ import annotations

import importlib.util
import math
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pipeline.errors import BreakerError, CatalogError, CatvecError, ConfigError, ModelError
from pipeline.settings import ModelSettings, RunSettings
from pipeline.train.job import Job, Part
from pipeline.train.pairs import TRAIN, VALIDATION, collect_pairs, digest_images
from pipeline.train.work import CATALOG, Work, find_finished, last_checkpoint, refuse_others, step_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pipeline.models.source import ModelFiles
    from pipeline.records import PreprocessSpec
    from pipeline.settings import TrainSettings
    from pipeline.train.job import Surroundings
    from pipeline.train.pairs import Pair, Pairs
    from pipeline.train.record import Record, Trained
    from pipeline.train.start import Start
    from pipeline.train.tokens import Titles
    from pipeline.train.trainer import ContrastiveTrainer, Plan
    from pipeline.train.work import Clock

CURES = {
    "private_host": "--allow-private-hosts lets catvec fetch them, if these hosts are meant",
    "no_image_root": "--image-root names the folder where their paths start",
    "file_not_found": "--image-root names the folder where their paths start; --restart looks for all of them again",
}
TRY_AGAIN = "the same command tries again what fails in passing, --restart all of them"

DECISIVE = (
    "tune", "epochs", "batch_size", "weight_decay", "warmup", "max_grad_norm", "augment", "validation_share",
    "split_column", "evaluate_every", "patience", "seed", "save_precision",
)  # fmt: skip
"""settings that the outcome depends on, beside those of a new model; a chunk's size changes the rounding only"""


def train(settings: TrainSettings, output: Path, around: Surroundings) -> Trained:
    """Train a model on a catalog's pairs and leave it in `output`; one that is there already stays as it is.

    Raises CatvecError, and KeyboardInterrupt when it was asked to stop: then the last step is kept.
    """
    began = time.monotonic()
    _require_packages(settings)
    _refuse_contradictions(settings)
    known = find_finished(output)
    job = _open_job(settings, Work(output=output.absolute()), around)
    if known is not None:
        hint = "nothing is overwritten: choose another --output"
        refuse_others(known.decisive, job.decisive, f"the model in {str(output)!r} was trained", hint)
        _tell_finished(known, settings, output, around)
        return known.trained(str(output), is_new=False)
    try:
        with job.work.begun(job.decisive, restart=around.restart, began=began) as clock:
            return _train(job, str(output), clock)
    except OSError as error:
        raise CatvecError(
            f"the training cannot be kept in {str(job.work.folder)!r}: {error.strerror or error}",
            hint="the same command goes on where it ended when that is mended",
        ) from error


def _tell_finished(known: Record, settings: TrainSettings, output: Path, around: Surroundings) -> None:
    """What was asked for and is not done; the card may have been written on by hand since."""
    if around.restart:
        around.tell(f"the model in {str(output)!r} is finished and stays: to train anew choose another --output")
    if settings.license not in (None, known.license):
        made = f"with --license {known.license}" if known.license else "without --license"
        around.tell(
            f"the model in {str(output)!r} is finished, and its card was made {made}: "
            f"nothing was changed. Write 'license: {settings.license}' into the head of {output / 'README.md'}, and "
            "what stands under Licence there"
        )


def _train(job: Job, output: str, clock: Clock) -> Trained:
    from pipeline.train.result import make_record, save, tell_left_out
    from pipeline.train.tune import refuse_more_layers
    from pipeline.train.unseen import leave_out_learned

    start = _open_start(job)
    refuse_more_layers(start.model, job.settings.tune)
    titles = _read_titles(job, start)
    learned, judged = _read_parts(job, start.preprocess)
    tell_left_out(job, learned, judged)
    _check_images(job, learned, judged)
    judged = leave_out_learned(job, start, judged)
    learned_titles = titles.keep(learned.pixels.rows)
    _check_titles(learned.pairs, learned_titles, start)
    trainer, finish = _prepare(job, start, learned, judged, learned_titles, on_save=clock.keep)
    _run(job, trainer)
    record = make_record(job, trainer, learned, judged, seconds=clock.seconds)
    save(job, start, finish(), record, trainer, learned)
    return record.trained(output, is_new=True)


def _require_packages(settings: TrainSettings) -> None:
    for name in ("accelerate", *(["peft"] if settings.tune == "lora" else [])):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"training needs the package {name}, which is not installed", hint="pip install 'catvec[train]'"
            )


def _refuse_contradictions(settings: TrainSettings) -> None:
    said = [entry.name for entry in fields(settings.new) if getattr(settings.new, entry.name) is not None]
    if settings.base is not None and said:
        raise ConfigError(f"{_option(said[0])} is for a new model, but --from names one to go on with")
    if settings.base is None and settings.tune != "all":
        raise ConfigError(
            f"--tune is {settings.tune!r}, but without --from there is no model to keep a part of",
            hint="all of a new model learns: leave --tune out",
        )
    if settings.base is None and settings.revision is not None:
        raise ConfigError(f"--revision is {settings.revision!r}, but there is no --from")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _open_job(settings: TrainSettings, work: Work, around: Surroundings) -> Job:
    """Read the catalog and find out what is needed; a wrong option is told before anything is written."""
    from pipeline.catalog.open import read_catalog
    from pipeline.models.device import choose_device, choose_precision
    from pipeline.models.source import find_model
    from pipeline.train.start import shape_of
    from pipeline.train.tune import learning_rate

    shape_of(settings.new)
    device = choose_device(settings.device)
    precision = choose_precision(settings.precision, device)
    rate = settings.learning_rate or learning_rate(settings.tune, is_new=settings.base is None)
    around.progress.begin("reading the catalog")
    pairs = collect_pairs(read_catalog(settings.catalog, stdin=around.stdin), settings)
    files = None
    if settings.base is not None:
        around.progress.begin("finding the model")
        files = find_model(ModelSettings(model=settings.base, revision=settings.revision))
    return Job(
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
    decisive = {_option(name): getattr(settings, name) for name in DECISIVE}
    new = {_option(entry.name): getattr(settings.new, entry.name) for entry in fields(settings.new)}
    decisive |= {name: value for name, value in new.items() if value is not None}
    if settings.catalog.image_root is not None:
        decisive["--image-root"] = str(settings.catalog.image_root)
    return decisive | {"--from": files.revision if files else None, CATALOG: pairs.digest()}


def _open_start(job: Job) -> Start:
    """The model to begin with; a new one is made once, so that a training that goes on has the same."""
    from pipeline.train.start import open_start, write_new_model

    if job.files is not None:
        return open_start(job.files.folder, str(job.settings.base))
    if not job.work.start.is_dir():
        job.around.progress.begin("making a new model")
        made = job.work.start.with_name("start.new")
        titles = [pair.title for pair in job.pairs.train]
        write_new_model(made, job.settings.new, titles, seed=job.settings.seed)
        made.rename(job.work.start)
    return open_start(job.work.start, str(job.work.start))


def _read_titles(job: Job, start: Start) -> Titles:
    """The titles to learn from as the model sees them."""
    from pipeline.train.tokens import tokenize_titles

    words = [pair.title for pair in job.pairs.train]
    titles = tokenize_titles(start.tokenizer, words)
    _check_titles(job.pairs.train, titles, start)
    cut = start.tokenizer.count_cut(sorted(set(words)))
    if cut:
        job.around.tell(
            f"{cut:,} of {len(set(words)):,} titles are longer than the {start.tokenizer.max_length} tokens that the "
            "model reads: nothing is learned from the rest"
        )
    return titles


def _check_titles(pairs: Sequence[Pair], titles: Titles, start: Start) -> None:
    if len(set(titles.of_pairs.tolist())) > 1:
        return
    found = f"all {len(pairs):,} images have the title {pairs[0].title!r}"
    if start.tokenizer.count_cut([pairs[0].title]):
        found = f"the titles of all {len(pairs):,} images begin with the same {start.tokenizer.max_length} tokens, "
        found += "which are all that the model reads"
    raise CatalogError(
        f"{found}, expected different ones",
        hint="images are told apart by their titles; --title-column names another column",
    )


def _read_parts(job: Job, preprocess: PreprocessSpec) -> tuple[Part, Part]:
    """What can be learned from, with a margin to crop from, and what is judged on, as `catvec run` prepares it."""
    from pipeline.catalog.open import image_root
    from pipeline.models.preprocess import fingerprint
    from pipeline.train.pixels import enlarged

    to_learn = enlarged(preprocess) if job.settings.augment else preprocess
    root = image_root(job.settings.catalog)
    train, validation = (
        f"{part}-{digest_images(pairs, root)}-{fingerprint(spec)}"
        for part, pairs, spec in ((TRAIN, job.pairs.train, to_learn), (VALIDATION, job.pairs.validation, preprocess))
    )
    job.work.keep_pixels(train, validation)
    learned = _read_part(job, job.pairs.train, to_learn, train)
    return learned, _read_part(job, job.pairs.validation, preprocess, validation)


def _read_part(job: Job, pairs: Sequence[Pair], spec: PreprocessSpec, name: str) -> Part:
    from pipeline.train.pixels import read_pixels

    settings, images = job.settings, [pair.image for pair in pairs]
    inputs = RunSettings(
        catalog=settings.catalog, fetch=settings.fetch, decode=settings.decode, decode_threads=settings.decode_threads
    )
    job.around.progress.begin(f"reading images, {name.partition('-')[0]}")
    pixels = read_pixels(
        images, spec, job.work.pixels / name, settings=inputs, progress=job.around.progress, settled=_settled(job)
    )
    return Part(pairs=[pairs[row] for row in pixels.rows], pixels=pixels)


def _settled(job: Job) -> frozenset[str]:
    """The kinds of failure of an image that another try does not mend.

    A training that has steps goes on with the images that it began with, or it would be another one.
    """
    if last_checkpoint(job.work.checkpoints) is not None:
        return frozenset({"permanent", "transient", "ours"})
    return frozenset() if job.around.restart else frozenset({"permanent"})


def _check_images(job: Job, learned: Part, judged: Part) -> None:
    if not learned.pairs:
        said, hint = _reasons(learned.pixels.codes)
        raise CatalogError(f"none of {len(job.pairs.train):,} images can be used: {said}", hint=hint)
    codes = learned.pixels.codes + judged.pixels.codes
    images = len(job.pairs.train) + len(job.pairs.validation)
    share, limit = codes.total() / images, job.settings.max_failure_rate
    if share > limit:
        said, hint = _reasons(codes)
        raise BreakerError(
            f"{codes.total():,} of {images:,} images cannot be used, more than the {limit:.0%} of "
            f"--max-failure-rate: {said}",
            hint=f"{hint}; --max-failure-rate {math.ceil(100 * share) / 100:g} trains on the others",
        )


def _reasons(codes: Counter[str]) -> tuple[str, str]:
    """Why images are left out, the most frequent reason first, and a cure."""
    cure = next((CURES[code] for code, _ in codes.most_common() if code in CURES), TRY_AGAIN)
    return ", ".join(f"{code} {count:,}" for code, count in codes.most_common()), cure


def _prepare(
    job: Job, start: Start, learned: Part, judged: Part, titles: Titles, *, on_save: Callable[[], None]
) -> tuple[ContrastiveTrainer, Callable[[], Any]]:
    """The trainer, and what gives the model as it is to be saved when it is done."""
    from pipeline.train.objective import Objective
    from pipeline.train.recall import choose_judge
    from pipeline.train.trainer import Batches, Reporter, make_trainer, plan_steps
    from pipeline.train.tune import prepare

    settings, around = job.settings, job.around
    finish = prepare(start.model, settings.tune, device=job.device)
    objective = Objective(start.model, start.preprocess, device=job.device, chunk_size=settings.chunk_size)
    batches = Batches(
        images=learned.pixels.images,
        rows=learned.pixels.rows,
        titles=titles,
        seed=settings.seed,
        augment=settings.augment,
    )
    judge = choose_judge(judged.pixels, judged.titles, start.tokenizer, job.device, settings.seed)
    plan = plan_steps(settings, len(batches), learning_rate=job.rate, precision=job.precision, device=job.device)
    _tell_plan(job, plan, learned, has_judge=judge is not None)
    reporter = Reporter(
        objective, plan, progress=around.progress, stop=around.stop, tell=around.tell, on_save=on_save
    )
    trainer = make_trainer(
        objective, batches, judge, plan, settings=settings, folder=job.work.checkpoints, reporter=reporter
    )
    return trainer, finish


def _tell_plan(job: Job, plan: Plan, learned: Part, *, has_judge: bool) -> None:
    tell = job.around.tell
    if plan.batch_size < job.settings.batch_size:
        tell(f"there are {plan.batch_size:,} images to learn from, fewer than a batch of {job.settings.batch_size:,}")
    if not has_judge:
        tell("too few products are kept apart to judge on: there is no Recall@1, and no early end")
    _warn_of_shared(job)
    tell(
        f"learning from {len(learned.pairs):,} images of {len(learned.products):,} products: {plan.steps:,} steps of "
        f"{plan.batch_size:,} on {job.device} in {job.precision}"
    )


def _warn_of_shared(job: Job) -> None:
    """A judgement that is too kind: what it asks for was seen."""
    if job.pairs.astride:
        job.around.tell(
            f"{job.pairs.astride:,} images stand on both sides of --split-column {job.settings.split_column} and "
            "make Recall@K too high: let the column say the same for all products of an image"
        )


def _run(job: Job, trainer: ContrastiveTrainer) -> None:
    """Train to the end, from the last checkpoint if there is one. Raises KeyboardInterrupt when asked to stop."""
    from pipeline.models.encoder import is_out_of_memory
    from pipeline.models.weights import brief, quiet

    last = last_checkpoint(job.work.checkpoints)
    if last is not None:
        job.around.tell(f"going on after step {step_of(last):,}")
    job.around.progress.begin("training")
    try:
        with quiet(), job.around.stop.draining():
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        batch_size = trainer.args.per_device_train_batch_size
        smaller = max(1, (job.settings.chunk_size or batch_size) // 4)
        raise ModelError(
            f"a batch of {batch_size:,} does not fit into the memory of {job.device}: {brief(error)}",
            hint=f"--chunk-size {smaller} computes it in parts, with the same result",
        ) from error
    if job.around.stop.is_asked() and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt
