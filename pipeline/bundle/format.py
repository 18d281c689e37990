"""What a bundle looks like: its names, its columns, and the identity that each of its files carries.

    bundle.json                          which model and catalog
    catalog-000001-<digest>.parquet      products and their images, one file, replaced when the catalog changes
    parts/part-000001-<digest>.parquet   what became of images, with the vectors; never changed once written

The digest in a name is that of the file's bytes, so whoever has a file can tell whether it is whole. `FORMAT` rises
when a reader of the old one would misread the new.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.errors import BundleError, ConfigError, ModelError
from pipeline.records import ModelSpec, PreprocessSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = 1
MANIFEST = "bundle.json"
PARTS = "parts"
METADATA = b"catvec"
"""key of a file's own metadata, which hold the manifest"""
DIGEST_DIGITS = 16
"""64 bits of the SHA-256: what happens to files is no attack"""

EMBEDDED, REUSED, FAILED = "embedded", "reused", "failed"
"""outcomes of an image: its bytes were encoded; they have a vector in an earlier row; it has none"""

_NAME = re.compile(r"(part|catalog)-(\d{6,})-([0-9a-f]{16})\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleModel:
    """The model of a bundle's vectors; `location` is where it was loaded from, and no part of its identity."""

    name: str
    source: str
    revision: str
    fingerprint: str
    dims: int
    has_text: bool
    location: str
    preprocess: PreprocessSpec

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            name=self.name,
            source=self.source,
            revision=self.revision,
            dims=self.dims,
            preprocess=self.preprocess,
            has_text=self.has_text,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What all files of a bundle have in common."""

    catalog: str
    model: BundleModel

    def as_json(self) -> str:
        whole = {"format": FORMAT, "made_by": f"catvec {__version__}", **asdict(self)}
        return json.dumps(whole, ensure_ascii=False, indent=2)


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """Raises BundleError for what is no manifest, or one of a newer format."""
    try:
        found = json.loads(text)
        number = found["format"]
        if number == FORMAT:
            return _manifest(found)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{where} says nothing of a bundle: it is cut off or was edited",
            hint="put the bundle.json back that was there; or remove it, and run the same catvec run … --to again, "
            "which writes it anew",
        ) from error
    raise BundleError(f"{where} has format {number!r}, this catvec knows {FORMAT}", hint="install a newer catvec")


def _manifest(found: Mapping[str, Any]) -> Manifest:
    model = dict(found["model"])
    preprocess = dict(model.pop("preprocess"))
    for name in ("mean", "std"):
        preprocess[name] = tuple(float(value) for value in preprocess[name])
    return Manifest(
        catalog=str(found["catalog"]), model=BundleModel(**model, preprocess=PreprocessSpec(**preprocess))
    )


def check_same_model(model: BundleModel, expected: BundleModel, *, where: str, hint: str) -> None:
    """Raise ModelError unless both are one vector space under one name; the expected one is that of `where`."""
    differences = [
        f"{word} {left} instead of {right}"
        for word, left, right in (
            ("name", model.name, expected.name),
            ("dimensions", model.dims, expected.dims),
            ("source", model.source, expected.source),
            ("weights", model.revision[:19], expected.revision[:19]),
            ("preprocessing", model.fingerprint, expected.fingerprint),
            ("text side", model.has_text, expected.has_text),
        )
        if left != right
    ]
    if differences:
        raise ModelError(f"{where} holds vectors of another model: {', '.join(differences)}", hint=hint)


# ---- names


def file_name(kind: str, number: int, digest: str) -> str:
    return f"{kind}-{number:06}-{digest}.parquet"


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS]


def digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_DIGITS]


def number_of(path: Path) -> int:
    return int(_parse_name(path)[0])


def named_digest_of(path: Path) -> str:
    return _parse_name(path)[1]


def _parse_name(path: Path) -> tuple[str, str]:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise BundleError(
            f"{str(path)!r} is no file of a bundle: its name lacks the number and the digest",
            hint="give it the name back that it had, or move it out of the bundle",
        )
    return match[2], match[3]


# ---- columns


def pyarrow() -> Any:
    """The package that reads and writes Parquet. Raises ConfigError without it."""
    try:
        import pyarrow as pa
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("bundles need the package pyarrow", hint="pip install 'catvec[parquet]'") from error
    return pa


def part_schema(pa: Any, manifest: Manifest) -> Any:
    """One row per image that came to an outcome, in the order of their ends."""
    return pa.schema(
        [
            pa.field("product_id", pa.string(), nullable=False),
            pa.field("url", pa.string(), nullable=False),
            pa.field("outcome", pa.string(), nullable=False),
            pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
            ("content_sha256", pa.binary()),
            # variable, because only embedded images have one; float32, because not every reader knows half precision
            ("embedding", pa.list_(pa.float32())),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("size_bytes", pa.int64()),
            ("mime", pa.string()),
            ("etag", pa.string()),
            ("last_modified", pa.string()),
            ("stage", pa.string()),
            ("code", pa.string()),
            ("detail", pa.string()),
            ("is_retryable", pa.bool_()),
            ("kind", pa.string()),
        ],
        metadata={METADATA: manifest.as_json()},
    )


def catalog_schema(pa: Any, manifest: Manifest) -> Any:
    """One row per product, and one per catalog row that could not be used, which has a `code`."""
    return pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            ("product_id", pa.string()),
            ("title", pa.string()),
            ("category", pa.string()),
            ("brand", pa.string()),
            ("price", pa.string()),  # as written: a price has no limit of digits, and no rounding
            ("attrs", pa.string()),
            ("images", pa.list_(pa.string())),
            ("code", pa.string()),
            ("detail", pa.string()),
            ("url", pa.string()),
        ],
        metadata={METADATA: manifest.as_json()},
    )
