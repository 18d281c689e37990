"""The nouns that cross a border between rooms: frozen, slotted, keyword-only.

They hold plain values and numpy arrays, never a connection, tensor or open file, so any engine can ship them.
One record per state: an image is an `ImageRef`, then `Fetched`, then `Decoded`, then an `Embedding`, or a
`Failure` at any step. `Content` is what is known of the bytes themselves and travels with all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from decimal import Decimal

    import numpy as np
    from numpy.typing import NDArray

EXACT_ROWS = 5_000
"""vectors up to which comparing all of them is right: it is as quick as an index, and exact"""
SAME_SIMILARITY = 1e-6
"""difference of two similarities that are the same and so have no order: matrix products round by their shape"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One product as the catalog states it.

    `images` holds locations in order: an http(s) URL, a path relative to the image root with forward slashes,
    or a data URI. `row` counts catalog rows from 1, without a header.
    """

    row: int
    product_id: str
    images: tuple[str, ...]
    title: str | None = None
    category: str | None = None
    brand: str | None = None
    price: Decimal | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A catalog row that is no product, or a product's image reference that is no image reference."""

    row: int
    code: str
    detail: str
    product_id: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """A catalog row that says that its product is no longer there."""

    row: int
    product_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """One image of one product as stored, a piece of work; `url` has one of the forms of `Product.images`.

    `etag` and `last_modified` are to be sent along, so that the server, or the file's own state, may answer "as
    it was"; None asks for the bytes whatever they are. `sha256` is the content it had last. `has_vector` says that
    this content has a vector under the model of the run, `failed_before` is the code of the failure that stands. When
    that is `failed_for_good`, the validators are those of the bytes that could not be used.
    """

    image_id: int
    product_id: str
    url: str = field(repr=False)  # may hold a password or a token
    etag: str | None = None
    last_modified: str | None = None
    sha256: bytes | None = None
    has_vector: bool = False
    failed_before: str | None = None
    failed_for_good: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What is known of the bytes behind an image; `etag` and `last_modified` are the server's own words."""

    image: ImageRef
    sha256: bytes
    size_bytes: int
    mime: str | None = None
    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """The bytes of one image."""

    content: Content
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotModified:
    """The bytes behind an image are those whose `etag` or `last_modified` was sent along."""

    image: ImageRef


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoded:
    """One image at the model's input size: uint8 [H, W, 3], RGB; width and height are the original's."""

    content: Content
    width: int
    height: int
    pixels: NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """The vector of one image under one model: float32 [D], norm 1."""

    content: Content
    width: int
    height: int
    vector: NDArray[np.float32] = field(repr=False)

    @property
    def image(self) -> ImageRef:
        return self.content.image


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an image has no vector, or not that of its newest bytes.

    `stage` is fetch, decode, encode or store; `code` is an ItemError's. `etag` and `last_modified` are those of the
    bytes that could not be used.
    """

    image: ImageRef
    stage: str
    code: str
    detail: str
    is_retryable: bool
    etag: str | None = None
    last_modified: str | None = None

    @property
    def kind(self) -> str:
        """Who has to change something: nobody but time (transient), the shop (permanent), or catvec's side (ours)."""
        if self.stage in {"encode", "store"} or self.code in {"internal_error", "private_host", "no_image_root"}:
            return "ours"
        # a page in place of an image is how many servers say that they are down, and a name that is not found comes
        # back
        return "transient" if self.is_retryable or self.code in {"not_an_image", "dns"} else "permanent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What became of some images.

    `reused` have other bytes than before, which have a vector already; `same` were read again and are what they were;
    `not_modified` were not even sent.
    """

    embedded: tuple[Embedding, ...] = ()
    reused: tuple[Content, ...] = ()
    same: tuple[Content, ...] = ()
    not_modified: tuple[NotModified, ...] = ()
    failed: tuple[Failure, ...] = ()

    def items(self) -> Iterator[Embedding | Content | NotModified | Failure]:
        yield from self.embedded
        yield from self.reused
        yield from self.same
        yield from self.not_modified
        yield from self.failed

    def __len__(self) -> int:
        return sum(1 for _ in self.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSpec:
    """How a model wants its pixels: the settings of its own image processor, and nothing that it ignores.

    `resize` is `shortest_edge` (then centre crop to height × width) or `squash` (straight to height × width).
    `resize_size` is the edge for `shortest_edge`. `resample` is Pillow's number. Normalised pixels are
    (uint8 · rescale - mean) / std per RGB channel.
    """

    resize: str
    resize_size: int
    height: int
    width: int
    resample: int
    rescale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One vector space: what was asked for and what it resolved to (law 6).

    `name` is the name in the database ([a-z][a-z0-9_]*). `source` is a Hub id, or for a local folder the word
    `folder`: the path may change, the weights may not. `revision` is the Hub's commit, or `sha256:…` of the
    weights of a folder. `has_text` says whether text can be encoded into the same space.
    """

    name: str
    source: str
    revision: str
    dims: int
    preprocess: PreprocessSpec
    has_text: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One product found: `similarity` is the cosine of its nearest image, 1 is identical."""

    product_id: str
    title: str | None
    category: str | None
    brand: str | None
    price: Decimal | None
    image: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductChanges:
    """What a run did to products: `new` and `changed` (title, price, attributes …) by the catalog, `removed` from
    search."""

    new: int
    changed: int
    removed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLoad:
    """What the workers of a stage did with their time, in shares of 0 to 1 that add up to at most 1.

    `busy` they worked, `starved` they waited for input, `blocked` they waited to hand over what they had made; the
    rest is what lies between. The network is busy with images that are under way, and blocked by those that wait to
    be decoded, in the proportion of their numbers. The event loop is the one thread that downloads, busy by processor
    time.
    """

    stage: str
    workers: int
    busy: float
    starved: float
    blocked: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run did; its fields are the keys of `catvec run --json`, see docs/nightly.md.

    Law 1: seen == unchanged + reused + embedded + failed + pending. `checked` images had a vector and were asked for
    again, `changed` showed other bytes than before; `deferred` are those of `failed` whose next try is not due.
    `moved` images stand at another URL than before within their product, `removed` ones left the search results;
    `forgotten` images and products were deleted. `cost` is what the machine cost in that time at --gpu-price, None
    without one; `shard` is i/n. `stopped_by` is None, max_runtime, failure_rate, SIGINT or SIGTERM. `limit` is a
    sentence: what kept the rate down, and what would move it; None when too little was done to say.
    `run_id` is None for a run into a bundle, which no database knows.
    """

    run_id: int | None
    finished: bool
    stopped_by: str | None
    seen: int
    unchanged: int
    reused: int
    embedded: int
    failed: int
    pending: int
    checked: int
    changed: int
    deferred: int
    moved: int
    removed: int
    forgotten: int
    products: ProductChanges
    failures_by_code: Mapping[str, int]
    seconds: float
    images_per_s: float
    cost: float | None
    shard: str | None
    model: str
    dims: int
    device: str | None
    precision: str | None
    batch_size: int | None
    stage_seconds: Mapping[str, float]
    stage_loads: tuple[StageLoad, ...]
    limit: str | None
