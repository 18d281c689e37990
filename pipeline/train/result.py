"""What a training leaves: the model's folder with its card and curves, and a list of what could not be used."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from pipeline.files import write_atomically
from pipeline.models.folder import INDEXES, SMALL_FILES
from pipeline.models.trained import read_trained_products, write_trained_products
from pipeline.models.weights import quiet
from pipeline.train.card import count_scripts, reads_of, shown_word, versions, write_card
from pipeline.train.curves import rows_of, write_curves
from pipeline.train.recall import MOST_JUDGED
from pipeline.train.record import RECORD, Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.train.job import Job, Part
    from pipeline.train.start import Start
    from pipeline.train.trainer import ContrastiveTrainer


def make_record(job: Job, trainer: ContrastiveTrainer, learned: Part, judged: Part, *, seconds: float) -> Record:
    """What is to be said of a training that has just ended."""
    state = trainer.state
    best_step = state.best_global_step or state.global_step
    best: Mapping[str, float] = next((row for row in rows_of(state.log_history) if row["step"] == best_step), {})
    return Record(
        steps=state.global_step,
        best_step=best_step,
        seconds=round(seconds, 1),
        data=_count(job, learned, judged),
        metrics={name: value for name, value in best.items() if "recall" in name},
        base=job.settings.base and shown_word(job.settings.base),
        command=job.around.command,
        decisive=job.decisive,
        versions=versions(),
        license=job.settings.license,
    )


def _count(job: Job, learned: Part, judged: Part) -> dict[str, int]:
    pairs = job.pairs
    rare = {
        "products that share an image": pairs.sharing,
        "images in both parts": pairs.astride,
    }
    bad_images = learned.pixels.codes + judged.pixels.codes
    return {
        "products learned from": len(learned.products),
        "images learned from": len(learned.pairs),
        "different titles": len(set(learned.titles)),
        **count_scripts(set(learned.titles)),
        "products kept apart": len(judged.products),
        "images judged on": min(len(judged.pairs), MOST_JUDGED),
        **judged.counts,
        "products without a title": len(pairs.untitled),
        **{what: count for what, count in rare.items() if count},
        **{f"images left out, {code}": count for code, count in bad_images.items()},
        **{f"products left out, their part is {part!r}": count for part, count in pairs.other_parts.items()},
        **{f"catalog rows left out, {code}": count for code, count in pairs.bad_codes.items()},
    }


def save(job: Job, start: Start, model: Any, record: Record, trainer: ContrastiveTrainer, learned: Part) -> None:
    """Write all of the model's folder beside its place, then put it there."""
    job.around.progress.begin("writing the model")
    folder = job.work.model
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with quiet():
        model.to("cpu", dtype=torch.float16 if job.settings.save_precision == "fp16" else None).save_pretrained(
            folder
        )
    for name in set(SMALL_FILES) - {"config.json", *INDEXES}:
        if (start.folder / name).is_file():
            shutil.copyfile(start.folder / name, folder / name)
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", path)  # they are written for nobody else to read
    write_trained_products(folder, learned.products, learned.urls, before=read_trained_products(start.folder))
    write_curves(rows_of(trainer.state.log_history), folder, f"Training of {job.work.output.name}")
    card = write_card(record, reads=reads_of(model.config), has_chart=(folder / "curves.png").is_file())
    write_atomically(folder / "README.md", card)
    write_atomically(folder / RECORD, json.dumps(asdict(record), indent=2, ensure_ascii=False))
    job.work.finish()


def tell_left_out(job: Job, learned: Part, judged: Part) -> None:
    """Name what could not be used, beside the model: its own folder tells nobody what the shop sells."""
    left = [(left.product_id, left.code, left.detail) for part in (learned, judged) for left in part.pixels.left_out]
    left += [(product_id, "no_title", "the product has no title") for product_id in job.pairs.untitled]
    left += [(row.product_id or "", row.code, f"row {row.row}: {row.detail}") for row in job.pairs.bad_rows]
    path = job.work.output.with_name(f"{job.work.output.name}.left_out.csv")
    if not left:
        path.unlink(missing_ok=True)  # what an earlier command said is mended
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("product_id", "code", "detail"), *left])
    write_atomically(path, text.getvalue())
    by_code = ", ".join(f"{count:,} {code}" for code, count in Counter(code for _, code, _ in left).most_common())
    named = [product_id for product_id, _, _ in left if product_id]
    first = f" ({', '.join(named[:3])}{' …' if len(named) > 3 else ''})" if named else ""
    job.around.tell(f"left out: {by_code}{first}; all are named in {path}")
