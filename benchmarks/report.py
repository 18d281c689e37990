"""Writes the last results into README.md, so that its numbers are those of the result files.

python -m benchmarks.report
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.conditions import RESULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: written by benchmarks/report.py -->", "<!-- end of results -->"

Result = dict[str, Any]


def main() -> None:
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    sections = [section for name, write in SECTIONS.items() for section in read(name, write)]
    README.write_text("\n\n".join([before + BEGIN, *sections, END + after]), encoding="utf-8")
    print(README)


def read(name: str, write: Callable[[Result], Iterator[str]]) -> Iterator[str]:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return
    result = json.loads(path.read_text(encoding="utf-8"))
    conditions = result["conditions"]
    versions = conditions["versions"]
    device = conditions["gpu"] or f"{conditions['cores']} cores of {conditions['processor']}"
    yield "\n".join(
        [
            f"### {name}",
            "",
            f"{conditions['measured_at'][:10]}, commit {conditions['commit'] or 'none yet'}, {device}, "
            f"torch {versions['torch']}, Python {versions['python']}.",
            "",
            *write(result),
        ]
    )


def table(*headers: str) -> list[str]:
    return [f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}"]


def spread(found: dict[str, float], digits: int = 1) -> str:
    return f"{found['median']:,.{digits}f} ({found['min']:,.{digits}f}–{found['max']:,.{digits}f})"


def write_startup(result: Result) -> Iterator[str]:
    yield from table("command, whole process", "seconds")
    for name, found in result["commands"].items():
        yield f"| {name} | {spread(found, 2)} |"
    yield ""
    yield from table("a first run before its first image", "seconds")
    for name, found in result["steps_of_a_first_run"].items():
        yield f"| {name} | {spread(found, 2)} |"


def write_encode(result: Result) -> Iterator[str]:
    yield from table("precision", "batch", "images/s")
    for line in result["rates"]:
        yield f"| {line['precision']} | {line['batch_size']} | {spread(line | {'median': line['images_per_s']})} |"


def write_decode_workers(result: Result) -> Iterator[str]:
    photos = result["photos"]
    size = "×".join(f"{pixels:.0f}" for pixels in photos["median_pixels"])
    yield (
        f"{photos['photos']} photos of {size} pixels (median), decoded to {result['image_size']}×"
        f"{result['image_size']}, {result['rounds']} rounds."
    )
    yield ""
    yield from table("workers", "images/s: threads", "processes", "core ms an image: threads", "processes")
    lines = {(line["kind"], line["workers"]): line for line in result["lines"]}
    for workers in dict.fromkeys(line["workers"] for line in result["lines"]):
        both = [lines[kind, workers] for kind in ("threads", "processes")]
        rates, costs = (
            [spread(line[key], digits) for line in both] for key, digits in (("images_per_s", 1), ("core_ms", 2))
        )
        yield f"| {workers} | {' | '.join([*rates, *costs])} |"


def write_compiled(result: Result) -> Iterator[str]:
    yield from table("model", "way", "images/s", "least cosine with eager", "seconds to compile", "pays from")
    for name, measured in result["models"].items():
        for way, found in measured["ways"].items():
            how, _, layout = way.partition(", ")
            took, pays = measured["compile_s"][layout], measured["pays_from_images"][layout]
            told = f"{took} | {f'{pays:,} images' if pays else 'never'}" if how == "compiled" else " | "
            where = f"{name}, {measured['precision']}, batches of {measured['batch_size']}"
            yield f"| {where} | {way} | {spread(found['images_per_s'])} | {found['least_cosine']:.6f} | {told} |"


def write_parity(result: Result) -> Iterator[str]:
    yield from table("photos", "precision", "reduced decoding", "least cosine", "mean cosine")
    for name, found in result["sets"].items():
        for line in found["comparisons"]:
            reduced = "yes" if line["reduced"] else "no"
            numbers = f"{line['min']:.6f} | {line['mean']:.6f}"
            yield f"| {found['photos']}, {name} | {line['precision']} | {reduced} | {numbers} |"


def write_end_to_end(result: Result) -> Iterator[str]:
    photos, ratio, share = result["photos"], result["ratio"], result["share_of_forward_limit"]
    size = "×".join(f"{pixels:.0f}" for pixels in photos["median_pixels"])
    yield f"{photos['photos']} photos of {size} pixels (median), {result['rounds']} rounds."
    yield ""
    yield from table("", "images/s", "whole process, s")
    for name in ("plain", "catvec"):
        told = result[name]
        how = f"{name}, {told['precision']}, batches of {told['batch_size']}"
        yield f"| {how} | {spread(told['images_per_s'])} | {spread(told['whole_seconds'])} |"
    for name, found in result["limits"].items():
        yield f"| limit: {name} | {spread(found)} | |"
    shared = result["limit_of_all_stages_sharing_the_cores"]
    if shared is not None:
        yield f"| limit: all of these on the same cores | {shared:,.1f} | |"
    yield ""
    yield (
        f"catvec : plain is {spread(ratio['images_per_s'], 2)} in images/s (asked: {ratio['asked']:g}) and "
        f"{spread(ratio['whole_process'], 2)} in whole processes. catvec reaches {share['catvec']:.0%} of what its "
        f"forward pass alone allows, the plain script {share['plain']:.0%} of its own."
    )


def write_real_catalog(result: Result) -> Iterator[str]:
    first, again, memory = result["first"], result["again"], result["memory"]
    marks = [f"{found['rss_mb']:,.0f} MB at image {images}" for images, found in memory["at_images"].items() if found]
    yield from table("", "seconds", "images/s", "peak memory, MB")
    for name, told in (("first run", first), ("the same again", again)):
        rate = f"{told['summary']['images_per_s']:,.1f}" if told["summary"]["embedded"] else "–"
        yield f"| {name} | {told['wall_seconds']:,.1f} | {rate} | {told['peak_mb']:,.0f} |"
    yield f"| `catvec similar` | {result['similar']['wall_seconds']:.2f} | | |"
    yield ""
    yield f"{first['summary']['seen']:,} photos; memory {' and '.join(marks) or 'not measured'}."
    yield from write_checks(result["checks"])
    yield "The commands and what they printed are in `results/real_catalog.txt`."


def write_switch(result: Result) -> Iterator[str]:
    models = " and ".join(f"{model['vectors']:,} × {model['dims']}" for model in result["models"].values())
    yield (
        f"{result['connections']} connections on two models of {models} vectors, each with a pause of "
        f"{result['mean_pause_ms']:g} ms on average between two reads; reads in ms."
    )
    yield ""
    yield from table("", "cores busy", "reads", "median", "p99", "slowest", "switches, seconds each")
    for name, phase in result["phases"].items():
        reads, switches = phase["reads"], phase["switch_s"]
        took = f"{switches['repeats']}: {spread(switches, 2)}" if switches else "–"
        numbers = f"{reads['median_ms']:,.1f} | {reads['p99_ms']:,.1f} | {reads['slowest_ms']:,.0f}"
        yield f"| {name} | {phase['busy_share_of_cores']:.0%} | {reads['count']:,} | {numbers} | {took} |"
    yield ""
    yield (
        f"{result['errors']} errors in {result['reads_in_all']:,} reads (asked: none, and no read slower than "
        f"{result['slowest_read_asked_s']:g} s). The long transaction keeps the view for {result['held_s']:g} s at "
        "each switch, which waits for it; readers wait for the switch 0.3 s at most."
    )


def write_similar(result: Result) -> Iterator[str]:
    build, binary = result["build"], result["binary"]
    yield (
        f"{result['vectors']:,} vectors of {result['dimensions']} dimensions, mean cosine {result['mean_cosine']}, "
        f"the {result['k']} nearest, {result['queries']} products asked; "
        f"PostgreSQL {result['database']['postgresql']}, pgvector {result['database']['pgvector']}. "
        "`similar_products` beside the same by hand: a plain `ORDER BY … LIMIT` on the view with a `WHERE`."
    )
    yield ""
    yield from table(
        "filter", "products kept", "recall", "short answers", "median ms (p95)", "by hand: recall", "short", "ms"
    )
    for line in result["hnsw"]:
        ours, hand = line["function"], line["by_hand"]
        yield (
            f"| {line['filter']} | {line['kept']:.2%} | {ours['recall']:.3f} | {ours['short_answers']} | "
            f"{ours['median_ms']:.1f} ({ours['p95_ms']:.1f}) | {hand['recall']:.3f} | {hand['short_answers']} | "
            f"{hand['median_ms']:.1f} |"
        )
    for line in result["texts"]:
        yield (
            f"| like words, {line['asked_by'].replace('_', ' ')} | 100 % | {line['recall']:.3f} | least "
            f"{line['least_recall']:.1f} | {line['median_ms']:.1f} | | | |"
        )
    for line in binary["answers"]:
        yield (
            f"| binary index, {line['filter']} | {line['kept']:.2%} | {line['recall']:.3f} | "
            f"{line['short_answers']} | {line['median_ms']:.1f} ({line['p95_ms']:.1f}) | | | |"
        )
    yield ""
    yield (
        f"Index (m {build['m']}, ef_construction {build['ef_construction']}, {build['size_mb']} MB; binary "
        f"{binary['size_mb']} MB): built in {spread(build['catvec_seconds'])} s, under default settings "
        f"({build['default_is']}) in {spread(build['default_seconds'])} s, {build['ratio']} times as long."
    )
    yield ""
    yield from table("", "asked", "reached")
    for name, asked in result["asked"].items():
        yield f"| {name} | {asked:g} | {result['reached'][name]:g} |"


def write_nightly(result: Result) -> Iterator[str]:
    check, loops, ratio = result["identity_check"], result["loops"], result["ratio_of_changed"]
    yield (
        f"{result['products']:,} products, a JPEG of {result['pictures']['median_bytes'] / 1000:.1f} kB each from "
        f"{result['http_server']}; model {result['model']}, {result['rounds']} rounds."
    )
    yield ""
    yield from table("a night", "seconds", "peak memory, MB", "images encoded", "vector rows +/~/−")
    for name, found in (("first load", result["first_load"]), *result["nights"].items()):
        rows, counts = found["vector_rows"][-1], found["counts"][-1]
        written = f"{rows['inserted']:,} / {rows['updated']:,} / {rows['deleted']:,}"
        memory = spread(found["peak_mb"], 0)
        yield f"| {name} | {spread(found['wall_seconds'])} | {memory} | {counts['embedded']:,} | {written} |"
    yield ""
    answers = ", ".join(f"{count:,} × {status}" for status, count in result["answers"].items())
    yield (
        f"Asked for again, the server answered {answers}. A night with 1 % changed takes "
        f"{spread(ratio['without_encoding'], 2)} times as long as one with nothing changed, without the "
        f"{spread(ratio['encoding_seconds'])} s of loading the model and encoding (asked: {ratio['asked']:g}). "
        f"Whether the model is still the same, {check['weights_mb']:,.0f} MB of weights, adds "
        f"{spread(check['difference_s'], 2)} s to each night."
    )
    yield ""
    yield from table(f"304s per second, {loops['at_once']} at once", "uvloop", "asyncio", "ratio")
    for name, found in loops["uvloop_to_asyncio"].items():
        rates = [spread(loops["requests_per_s"][f"{name}, {loop}"], 0) for loop in ("uvloop", "asyncio")]
        yield f"| {name} | {rates[0]} | {rates[1]} | {spread(found, 2)} |"
    yield ""
    yield from write_checks(result["checks"])


def write_seven_nights(result: Result) -> Iterator[str]:
    yield f"{result['products']:,} photos, model {result['model']}."
    yield ""
    yield from table("night", "what happened", "as it should")
    nights: dict[tuple[str, str], list[str]] = {}
    for line in result["nights"]:
        failed = nights.setdefault((line["night"], line["what"]), [])
        if not line["ok"]:
            failed.append(line["witness"])
    for (night, what), failed in nights.items():
        yield f"| {night} | {what} | {'yes' if not failed else '**no**: ' + ', '.join(failed)} |"
    yield ""
    yield "Every number, should and did, and what the commands printed are in `results/seven_nights.txt`."


def write_checks(checks: dict[str, bool | None]) -> Iterator[str]:
    for met, word in ((True, "As asked"), (False, "**Not as asked**"), (None, "Not shown by so few")):
        names = [name for name, found in checks.items() if found is met]
        if names:
            yield f"{word}: {'; '.join(names)}."


def write_write_path(result: Result) -> Iterator[str]:
    yield (
        f"{result['vectors']:,} vectors of {result['dims']} dimensions (halfvec) with the rows of their images, "
        f"vectors/s; a run's transactions hold up to {result['chunk_of_run']}."
    )
    yield ""
    yield from table("", "way", "vectors/s")
    for place, ways in result["vectors_per_s"].items():
        for way, found in ways.items():
            yield f"| {place} | {way} | {spread(found, 0)} |"
    yield ""
    yield from write_checks(result["checks"])


def write_demo_model(result: Result) -> Iterator[str]:
    model, products = result["model"], result["products"]
    training = model["training"]
    yield (
        f"{products['all']:,} products with {result['images']:,} images that it never saw, "
        f"{products['of_seen_combinations']:,} of combinations that it learned; "
        f"{model['weights_bytes'] / 1e6:.1f} MB of weights, {training['steps']:,} steps in "
        f"{training['seconds'] / 60:.0f} minutes. {model['training_note']}".rstrip()
    )
    yield ""
    yield from table("asked", "", "Recall@1 (95 %)", "Recall@5 (95 %)")
    for wording, parts in result["text_to_image"].items():
        for part, found in parts.items():
            numbers = " | ".join(interval(found[name]) for name in ("recall@1", "recall@5"))
            yield f"| {wording} | {part.replace('_', ' ')} | {numbers} |"
    yield ""
    for key, what in (
        ("zero_shot", "all images of a product"),
        ("zero_shot_of_first_images", "its first image alone"),
    ):
        right = ", ".join(f"{name} {interval(found)}" for name, found in result[key].items())
        yield f"Zero-shot by the words alone, {what}: {right}."


def write_independent(result: Result) -> Iterator[str]:
    yield f"{result['products']:,} products of the demo that its model never saw; precision / recall by threshold."
    yield ""
    compared = [found for found in result.values() if isinstance(found, dict) and "against" in found]
    yield from table("compared with", *compared[0]["by_threshold"])
    for found in compared:
        shares = [f"{at['precision']:.3f} / {at['recall']:.3f}" for at in found["by_threshold"].values()]
        yield f"| {', '.join(found['against'])} | {' | '.join(shares)} |"


def interval(found: Result) -> str:
    least, most = found["interval_95"]
    return f"{found['share']:.3f} ({least:.3f}–{most:.3f})"


def write_clothing(result: Result) -> Iterator[str]:
    training, zero_shot = result["training"], result["zero_shot"]
    data = training["data"]
    yield (
        f"{data['images learned from']:,} photos learned from in {training['seconds'] / 60:.0f} minutes "
        f"({training['steps']:,} steps), {data['images judged on']:,} to choose the step by; judged on "
        f"{result['tags_by_words']['asked']:,} others of {len(result['labels'])} categories, the largest with "
        f"{zero_shot['largest_class']:.0%}. {result['training_note']}".rstrip()
    )
    yield ""
    yield from table("right", "share (95 %)")
    yield f"| zero-shot, by the words alone | {interval(result['tags_by_words'])} |"
    yield f"| linear probe on the stored vectors | {interval(result['tags_by_linear_probe'])} |"
    yield ""
    yield "The commands and what they printed are in `results/clothing.txt`."


def write_bundle(result: Result) -> Iterator[str]:
    yield (
        f"{result['vectors']:,} vectors of {result['dims']} dimensions, each of a product of its own, in parts of "
        f"{result['rows_of_a_part']:,} rows at most."
    )
    yield ""
    yield from table("", "vectors/s")
    for way, found in result["vectors_per_s"].items():
        yield f"| {way} | {spread(found, 0)} |"


def write_tag(result: Result) -> Iterator[str]:
    after = result["after"]
    yield (
        f"{result['products']:,} products with one image each, {result['dimensions']} dimensions, {result['labels']} "
        f"labels, into an empty table; asked: {result['asked_seconds']} s."
    )
    yield ""
    yield from table(
        "", "matrix products in numpy (catvec tag), seconds", "one statement of SQL, seconds", "same labels"
    )
    for name, way in result["ways"].items():
        yield (
            f"| {name} | {spread(way['seconds']['numpy'])} | {spread(way['seconds']['sql'])} | "
            f"{way['same_labels']:.3%} |"
        )
    yield ""
    yield (
        f"The same command again: {after['nothing_changed_s']:.1f} s; with another picture for one product in a "
        f"hundred: {after['one_in_a_hundred_changed_s']:.1f} s. `similar_products` with a filter by tag:"
    )
    yield ""
    yield from table("label", "products kept", "ms")
    shown = [found for found in after["searches"] if found["rows_of_the_last"]]
    for found in (shown[0], shown[len(shown) // 2], shown[-1]):
        yield f"| {found['label']} | {found['kept']:.2%} | {spread(found['ms'])} |"


def write_tokenizer(result: Result) -> Iterator[str]:
    yield (
        f"{result['texts']} texts, {result['ids']} ids under {result['tokens']:,} tokens; texts with other ids than "
        f"the re-computation has: {len(result['differing'])}."
    )


def write_train_step(result: Result) -> Iterator[str]:
    yield (
        f"{result['batch_size']} pairs, a new `{result['size']}` model on {result['device']}; of a CPU the seconds "
        "are those of its cores."
    )
    yield ""
    yield from table("precision, attention, batch", "seconds")
    for name, seconds in result["seconds"].items():
        yield f"| {name} | {spread(seconds, 3)} |"


SECTIONS: dict[str, Callable[[Result], Iterator[str]]] = {
    "similar": write_similar,
    "tag": write_tag,
    "end_to_end": write_end_to_end,
    "real_catalog": write_real_catalog,
    "nightly": write_nightly,
    "seven_nights": write_seven_nights,
    "startup": write_startup,
    "encode": write_encode,
    "decode_workers": write_decode_workers,
    "gpu_decode_workers": write_decode_workers,
    "compiled": write_compiled,
    "gpu_compiled": write_compiled,
    "parity": write_parity,
    "switch": write_switch,
    "write_path": write_write_path,
    "bundle": write_bundle,
    "demo_model": write_demo_model,
    "clothing": write_clothing,
    "tokenizer": write_tokenizer,
    "independent": write_independent,
    "train_step": write_train_step,
}

if __name__ == "__main__":
    main()
