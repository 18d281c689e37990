"""What can be set, one frozen record per concern; each checks itself and raises ConfigError.

Nothing here reads a file or the environment. The command line makes its options out of these fields: name, type,
default and help are written once, here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from datetime import timedelta
from math import isfinite
from pathlib import Path  # noqa: TC003 - the command line reads these annotations
from typing import Any

from pipeline.errors import ConfigError
from pipeline.shard import Shard  # noqa: TC001 - as above

DECODERS = ("auto", "pillow", "nvjpeg")
COMPILATIONS = ("auto", "on", "off")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
STORAGES = ("halfvec", "vector")
MODEL_SIZES = ("tiny", "small", "base")
FITS = ("crop", "squash")


def setting(default: Any, help_text: str) -> Any:
    """A field with its help; the unit stands in the help."""
    return field(default=default, metadata={"help": help_text})


def _check(settings: object, **minima: float) -> None:
    """Every named field is at least its minimum, or None."""
    for name, minimum in minima.items():
        value = getattr(settings, name)
        if value is not None and not value >= minimum:  # NaN is neither
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} is {value!r}, expected at least {minimum}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogSettings:
    """Where the catalog is and how to read it. A column set to None is found by its usual names."""

    uri: str = field(repr=False)  # may hold a password
    format: str | None = setting(None, "csv, tsv, json, jsonl, parquet, folder or sql; else by the ending")
    encoding: str = setting("utf-8-sig", "text encoding of csv, tsv, json and jsonl, such as cp1252 or utf-16")
    delimiter: str | None = setting(None, "one character between csv columns; else found in the first lines")
    query: str | None = setting(None, "the SELECT to run when the catalog is an SQLAlchemy URL")
    id_column: str | None = setting(None, "column of the product id; else found by its usual names")
    image_columns: tuple[str, ...] = setting((), "column of images, may be given several times")
    title_column: str | None = setting(None, "column of the title")
    category_column: str | None = setting(None, "column of the category")
    brand_column: str | None = setting(None, "column of the brand")
    price_column: str | None = setting(None, "column of the price")
    image_separator: str | None = setting(None, "what parts several images in one cell; else found per cell")
    image_root: Path | None = setting(None, "folder where relative image paths start; else beside the catalog")
    deleted_column: str | None = setting(
        None, "column that says true, yes, 1 or deleted for a product that is no longer there"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """How images are downloaded and read."""

    concurrency: int = setting(64, "downloads at once")
    per_host: int = setting(16, "downloads at once from one host")
    timeout_s: float = setting(30.0, "seconds for one image: all tries, redirects and waiting")
    max_bytes: int = setting(20 * 1024 * 1024, "bytes an image may have")
    max_redirects: int = setting(5, "redirects followed for one image")
    retries: int = setting(3, "tries after the first one")
    allow_private_hosts: bool = setting(False, "fetch from private, loopback and link-local addresses too")

    def __post_init__(self) -> None:
        _check(self, concurrency=1, per_host=1, timeout_s=0.1, max_bytes=1, max_redirects=0, retries=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """How bytes become pixels."""

    reduced: bool = setting(True, "decode large JPEGs at a half, quarter or eighth, never below twice the input size")
    decoder: str = setting(
        "auto", "auto, pillow, or nvjpeg: JPEG files on the CUDA devices; auto does so where torchvision can"
    )
    max_pixels: int = setting(100_000_000, "pixels an image may have; 100 million take 300 MB while decoding")

    def __post_init__(self) -> None:
        _check(self, max_pixels=1)
        if self.decoder not in DECODERS:
            raise ConfigError(f"--decoder is {self.decoder!r}, expected {', '.join(DECODERS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which model, and how it runs here."""

    model: str = setting("vit-b-32", "vit-b-32, vit-b-16, vit-l-14, vit-l-14-336, a Hub id, or a local folder")
    model_name: str | None = setting(None, "the model's name in the database; else made from --model")
    revision: str | None = setting(None, "branch, tag or commit of a Hub model")
    device: str = setting(
        "auto", "auto, cuda, cuda:N, mps or cpu; all for every GPU, or several with commas: cuda:0,cuda:2"
    )
    precision: str = setting("auto", "auto, fp32, bf16 or fp16")
    batch_size: int | None = setting(None, "images in one forward pass; else by the device")
    compile: str = setting(
        "auto",
        "auto, on or off: compile the model with torch.compile; auto does so on CUDA where the images are enough for "
        "it to pay back, and keeps what is quicker",
    )

    def __post_init__(self) -> None:
        _check(self, batch_size=1)
        if self.precision not in PRECISIONS:
            raise ConfigError(f"--precision is {self.precision!r}, expected {', '.join(PRECISIONS)}")
        if self.compile not in COMPILATIONS:
            raise ConfigError(f"--compile is {self.compile!r}, expected {', '.join(COMPILATIONS)}")
        if not re.fullmatch(r"auto|all|mps|cuda|(cpu|cuda:\d+)(,(cpu|cuda:\d+))*", self.device):
            raise ConfigError(
                f"--device is {self.device!r}, expected auto, all, cuda, cuda:N, mps or cpu",
                hint="several with commas, such as --device cuda:0,cuda:1",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """One run of `catvec run`; the nested records have options of their own."""

    catalog: CatalogSettings
    fetch: FetchSettings = field(default_factory=FetchSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    catalog_name: str = setting("default", "name of the catalog, when a database holds several")
    shard: Shard | None = setting(
        None, "do one share of the products, such as 1/4, beside runs that do 2/4, 3/4 and 4/4 with the same database"
    )
    gpu_price: float | None = setting(
        None, "what the machine costs an hour, in any currency: progress and summary say what the run costs"
    )
    decode_threads: int | None = setting(None, "threads that decode; else one per core")
    max_remove_rate: float = setting(
        0.1, "share of the stored products that may be missing, or have lost all images, 0 to 1"
    )
    partial: bool = setting(False, "the catalog holds only what changed: products that it does not name stay")
    deleted_ids: Path | None = setting(
        None, "text file with the ids of products that are no longer there, one a line"
    )
    recheck: timedelta = setting(
        timedelta(days=7),
        "how old knowledge of an image at a URL may be before its server is asked whether it changed: a duration "
        "such as 7d, always or never; each night a share of them is due. Files are looked at in every run, "
        "unless never",
    )
    full_check: timedelta = setting(
        timedelta(days=90),
        "how old that knowledge may be before the bytes are read again, whatever the server says: 90d, always or "
        "never; a share of what is asked for is due each time",
    )
    ignore_validators: bool = setting(False, "read the bytes of all that is checked, as with --full-check always")
    forget_after: timedelta = setting(
        timedelta(days=30),
        "how long products, images and vectors that left the catalog are kept: 30d, always or never",
    )
    max_failure_rate: float = setting(
        0.5,
        "share of the last 100 images that may fail, 0 to 1, before the run takes their servers for down and stops",
    )
    build_index: bool = setting(True, "have an HNSW index after the run")
    home: Path | None = None
    """where catvec keeps what it measured once on this machine; no option of its own"""
    storage: str | None = setting(
        None, "halfvec (16 bits a number) or vector (32 bits) for a new model's table; else halfvec, or as it is"
    )

    def __post_init__(self) -> None:
        _check(self, decode_threads=1, max_remove_rate=0, gpu_price=0)
        if self.storage is not None and self.storage not in STORAGES:
            raise ConfigError(f"--storage is {self.storage!r}, expected {' or '.join(STORAGES)}")
        if self.max_remove_rate > 1:
            raise ConfigError(f"--max-remove-rate is {self.max_remove_rate!r}, expected 0 to 1")
        if self.gpu_price is not None and not isfinite(self.gpu_price):
            raise ConfigError(f"--gpu-price is {self.gpu_price!r}, expected the price of an hour")
        if not 0 <= self.max_failure_rate <= 1:
            raise ConfigError(f"--max-failure-rate is {self.max_failure_rate!r}, expected 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """How `catvec load` brings a bundle into a database; what is said here is said for `run`, too."""

    model_name: str | None = setting(
        None, "the model's name in the database; else the one that it has there, or as in the bundle"
    )
    max_remove_rate: float = setting(
        0.1, "share of the stored products that may be missing in the bundle, or have lost all images, 0 to 1"
    )
    partial: bool = setting(False, "products that the bundle does not name stay")
    build_index: bool = setting(True, "have an HNSW index after the load")
    storage: str | None = setting(
        None, "halfvec (16 bits a number) or vector (32 bits) for a new model's table; else halfvec, or as it is"
    )

    def __post_init__(self) -> None:
        _check(self, max_remove_rate=0)
        if self.max_remove_rate > 1:
            raise ConfigError(f"--max-remove-rate is {self.max_remove_rate!r}, expected 0 to 1")
        if self.storage is not None and self.storage not in STORAGES:
            raise ConfigError(f"--storage is {self.storage!r}, expected {' or '.join(STORAGES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateSettings:
    """What `catvec plan --estimate` measures, and what it is told of the machine to be rented."""

    sample: int = setting(200, "images that --estimate fetches and decodes, from all over the catalog")
    cores: int | None = setting(None, "cores of the machine to be rented, for --estimate; else as many as here")
    images_per_s: float | None = setting(
        None, "images a second that the device to be rented encodes, for --estimate; else measured on the one here"
    )
    bench: Path | None = setting(
        None, "what catvec bench --json printed on such a device, for --estimate, in place of --images-per-s"
    )

    def __post_init__(self) -> None:
        _check(self, sample=1, cores=1)
        if self.bench is not None and self.images_per_s is not None:
            raise ConfigError("--bench and --images-per-s both say what the device encodes, expected one of them")
        if self.images_per_s is not None and not (isfinite(self.images_per_s) and self.images_per_s > 0):
            raise ConfigError(f"--images-per-s is {self.images_per_s!r}, expected more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewModelSettings:
    """The shape of a model that is trained from scratch; what is None is that of the size."""

    size: str | None = setting(
        None,
        "shape of a new model: tiny (64 pixels, 2 million weights), small (128, 9 million), base (224, 34 million); "
        "small without --from",
    )
    image_size: int | None = setting(None, "pixels of a new model's images, both ways; else by --size")
    patch_size: int | None = setting(None, "pixels of a patch, both ways; else by --size")
    width: int | None = setting(None, "width of the image side's layers, a multiple of 32; else by --size")
    layers: int | None = setting(None, "layers of the image side; else by --size")
    text_width: int | None = setting(None, "width of the text side's layers, a multiple of 32; else by --size")
    text_layers: int | None = setting(None, "layers of the text side; else by --size")
    dims: int | None = setting(None, "numbers of a vector; else by --size")
    vocabulary: int | None = setting(None, "tokens of a new model's tokenizer at most; 4000 unless said")
    fit: str | None = setting(
        None, "crop (shortest edge, then the centre; the default) or squash (all of the image) to a new model's size"
    )

    def __post_init__(self) -> None:
        _check(
            self, image_size=8, patch_size=1, width=32, layers=1, text_width=32, text_layers=1, dims=1, vocabulary=600
        )
        if self.size is not None and self.size not in MODEL_SIZES:
            raise ConfigError(f"--size is {self.size!r}, expected {', '.join(MODEL_SIZES)}")
        if self.fit is not None and self.fit not in FITS:
            raise ConfigError(f"--fit is {self.fit!r}, expected {' or '.join(FITS)}")
        for name in ("width", "text_width"):
            if (getattr(self, name) or 0) % 32:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)!r}, expected a multiple of 32")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """One training of `catvec train`; the nested records have options of their own."""

    catalog: CatalogSettings
    fetch: FetchSettings = field(default_factory=FetchSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    new: NewModelSettings = field(default_factory=NewModelSettings)
    base: str | None = None
    """--from: the model to go on with; None for a new one"""
    revision: str | None = setting(None, "branch, tag or commit of a Hub model given as --from")
    tune: str = setting(
        "all", "what of a model given as --from may change: all, last:N (its last N layers on both sides) or lora"
    )
    epochs: int = setting(30, "how often each image is seen")
    batch_size: int = setting(256, "image-title pairs that are told apart in one step")
    chunk_size: int | None = setting(
        None,
        "pairs that are computed at once, for batches that do not fit into memory: exact, a quarter slower or more",
    )
    learning_rate: float | None = setting(
        None, "highest rate of learning; else 0.001 for a new model, 0.00001 for all, 0.0001 for last:N and lora"
    )
    weight_decay: float = setting(0.1, "pull of weights towards 0; gains, biases and the temperature have none")
    warmup: float = setting(0.05, "share of the steps in which the rate of learning rises, 0 to 1")
    max_grad_norm: float = setting(1.0, "length to which a longer gradient is cut")
    augment: bool = setting(True, "show other crops, mirrored, and a little brighter or darker, each time")
    validation_share: float = setting(
        0.1, "share of the products that are kept apart to be judged on, by a hash of their ids, 0 to 0.9"
    )
    split_column: str | None = setting(
        None, "column that says train or validation for each product, in place of --validation-share"
    )
    evaluate_every: int | None = setting(None, "steps from one evaluation and checkpoint to the next; else 40 in all")
    patience: int = setting(10, "evaluations without a better Recall@1 after which training ends")
    seed: int = setting(0, "number that all chance is made from")
    precision: str = setting("auto", "auto, fp32, bf16 or fp16 for the matrix products; weights stay fp32")
    device: str = setting("auto", "auto, cuda, mps or cpu; CUDA_VISIBLE_DEVICES chooses the GPU")
    decode_threads: int | None = setting(None, "threads that decode; else one per core")
    save_precision: str = setting("fp32", "fp32, or fp16 for weights of half the size")
    license: str | None = setting(None, "licence of the weights, for the model card: mit, apache-2.0 …")
    max_failure_rate: float = setting(
        0.5, "share of the images that may be left out, 0 to 1, before it is refused to train on the others"
    )

    def __post_init__(self) -> None:
        _check(self, epochs=1, batch_size=2, chunk_size=1, evaluate_every=1, patience=1, decode_threads=1, seed=0)
        _check(self, weight_decay=0, warmup=0, validation_share=0)
        if not re.fullmatch(r"all|lora|last:[1-9]\d*", self.tune):
            raise ConfigError(f"--tune is {self.tune!r}, expected all, lora or last:N, such as last:2")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise ConfigError(f"--{name.replace('_', '-')} is {value!r}, expected more than 0")
        if self.warmup > 1:
            raise ConfigError(f"--warmup is {self.warmup!r}, expected 0 to 1")
        if not isfinite(self.weight_decay):
            raise ConfigError(f"--weight-decay is {self.weight_decay!r}, expected a number")
        if self.validation_share > 0.9:
            raise ConfigError(f"--validation-share is {self.validation_share!r}, expected 0 to 0.9")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"--precision is {self.precision!r}, expected {', '.join(PRECISIONS)}")
        if not 0 <= self.max_failure_rate <= 1:
            raise ConfigError(f"--max-failure-rate is {self.max_failure_rate!r}, expected 0 to 1")
        if self.save_precision not in ("fp32", "fp16"):
            raise ConfigError(f"--save-precision is {self.save_precision!r}, expected fp32 or fp16")
        if self.license is not None and not re.fullmatch(r"[A-Za-z0-9.-]+", self.license):
            raise ConfigError(f"--license is {self.license!r}, expected an identifier such as mit or apache-2.0")
        if self.device not in ("auto", "cuda", "mps", "cpu"):
            raise ConfigError(
                f"--device is {self.device!r}, expected auto, cuda, mps or cpu",
                hint="CUDA_VISIBLE_DEVICES=1 makes the second GPU the only one",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """How `catvec train --head` fits a classifier of one attribute on stored vectors."""

    attribute: str
    output: Path | None = setting(None, "file of the head; else ATTRIBUTE.safetensors here")
    hidden: int | None = setting(None, "units of a hidden layer; else none: a linear probe")
    threshold: float = setting(0.5, "probability below which catvec tag says unknown, 0 to 1")
    seed: int = setting(0, "seed of the split into products to learn from and products to judge on")

    def __post_init__(self) -> None:
        _check(self, hidden=1, threshold=0, seed=0)
        if not self.threshold <= 1:
            raise ConfigError(f"--threshold is {self.threshold!r}, expected 0 to 1")
        if not self.attribute.strip():
            raise ConfigError("--head names no attribute", hint="for example --head category")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandSettings:
    """What every `catvec evaluate` asks for: what is good enough, and the seed of what is drawn by chance."""

    fail_under: tuple[str, ...] = setting(
        (), "exit with code 3 when less than NAME=NUMBER is reached; may be given several times"
    )
    seed: int = setting(0, "seed of the resampling and of the examples on the page")

    def __post_init__(self) -> None:
        _check(self, seed=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """How `catvec evaluate` judges models by their products, and where the pictures of its page are."""

    demands: DemandSettings = field(default_factory=DemandSettings)
    include_trained: bool = setting(False, "judge by products that the model was trained on, too")
    image_root: Path | None = setting(None, "folder of images that are files, for the page of --report")
    allow_private_hosts: bool = setting(
        False, "fetch images for the page from private, loopback and link-local addresses too"
    )


def plain_fields(kind: type) -> list[str]:
    """The names of the fields of a settings record that are set one by one."""
    return [entry.name for entry in fields(kind) if "help" in entry.metadata]
