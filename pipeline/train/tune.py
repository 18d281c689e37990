"""What of a model may change: all of it, its last layers, or small matrices beside its own (LoRA)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RANK, ALPHA = 8, 16
"""of the added matrices: Hu et al. 2021, "LoRA", table 6, where a rank of 8 does as well as one of 64"""
LEARNING_RATES = {"new": 1e-3, "all": 1e-5, "last": 1e-4, "lora": 1e-4}
LAST = "last:"
_SIDES = ("vision_model", "text_model")


def prepare(model: Any, tune: str, *, device: str) -> Callable[[], Any]:
    """Let only that change which `tune` names; the function it returns gives the model as it is to be saved."""
    if device == "cpu":
        # on a CPU torch's fused attention is slow on the way back: a step of 128 pairs takes 0.66 s of a core with it
        # and 0.44 s without (tiny, bf16, AVX512; 0.80 and 0.84 s in fp32: benchmarks/results/train_step.json)
        model.set_attn_implementation("eager")
    if tune == "lora":
        return _add_adapters(model)
    if tune.startswith(LAST):
        _freeze_but_last(model, int(tune.removeprefix(LAST)))
    return lambda: model


def refuse_more_layers(model: Any, tune: str) -> None:
    """Raise ConfigError when `tune` names more layers than both sides of the model have."""
    if not tune.startswith(LAST):
        return
    fewest = min(len(_layers(getattr(model, side))) for side in _SIDES)
    if int(tune.removeprefix(LAST)) > fewest:
        raise ConfigError(
            f"--tune is {tune!r}, but a side of the model has {fewest} layers",
            hint=f"--tune {LAST}{fewest} or --tune all",
        )


def learning_rate(tune: str, *, is_new: bool) -> float:
    """What suits: a new model learns all from nothing, a trained one must not forget what it knows."""
    return LEARNING_RATES["new" if is_new else tune.partition(":")[0]]


def _freeze_but_last(model: Any, layers: int) -> None:
    """What comes after the last layers (norms, projections, temperature) changes too; embeddings do not."""
    model.requires_grad_(requires_grad=True)
    for side in _SIDES:
        tower = getattr(model, side)
        stack = _layers(tower)
        for part in _before(tower, stack, layers):
            part.requires_grad_(requires_grad=False)


def _layers(tower: nn.Module) -> nn.ModuleList:
    """The layers of a side: its longest list of modules."""
    return max((part for part in tower.modules() if isinstance(part, nn.ModuleList)), key=len)


def _before(tower: nn.Module, stack: nn.ModuleList, layers: int) -> Iterator[nn.Module]:
    yield from list(stack)[: len(stack) - layers]
    for name, part in tower.named_children():
        # CLIP's own spelling of the norm before its layers is pre_layrnorm
        if name.startswith(("embed", "pre_")):
            yield part


def _add_adapters(model: Any) -> Callable[[], Any]:
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    linear = sorted({name for name, part in model.named_modules() if isinstance(part, nn.Linear)})
    # in place: the trainer saves and loads the weights of a module, without knowing of adapters
    adapted = LoraModel(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=linear), "default")
    for name in ("logit_scale", "logit_bias"):
        if hasattr(model, name):
            getattr(model, name).requires_grad_(requires_grad=True)
    merge: Callable[[], Any] = adapted.merge_and_unload
    return merge
