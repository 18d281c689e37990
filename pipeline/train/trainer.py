"""transformers' Trainer for contrastive batches: its loop, schedule, precision, checkpoints and early stopping.

Only the loss and the evaluation are our own. The items of the data set are row numbers, and the collator makes the
whole batch of them at once: pixels by one indexed read, titles tokenized beforehand, random numbers for the views.
"""

from __future__ import annotations

import shutil
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pipeline.errors import ModelError
from pipeline.train.augment import DRAWS
from pipeline.train.work import last_checkpoint, step_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pipeline.engine.stop import Stop
    from pipeline.progress import Progress
    from pipeline.settings import TrainSettings
    from pipeline.train.objective import Objective
    from pipeline.train.recall import Judge
    from pipeline.train.tokens import Titles

EVALUATIONS, LEAST_STEPS = 40, 10
"""of a training, and steps from one to the next, unless --evaluate-every says otherwise"""
LOGS = 400
"""points of the loss's curve"""
BETAS, EPSILON = (0.9, 0.98), 1e-6
"""of AdamW: Radford et al. 2021, table 19, for vision transformers"""
JUDGED_BY = "recall@1"
WORKERS = 2
WAITING_BATCHES = WORKERS * 2 + 2
"""at most: torch asks each worker for two ahead; one more is being copied, and one at work"""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - no file is made there by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Row numbers → a batch: the Trainer's collator. `rows` int64 [N] are the pairs' places in `images`."""

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    titles: Titles
    seed: int
    augment: bool

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        chosen = np.array(numbers)
        of_pairs = self.titles.of_pairs[chosen]
        different, title_of = np.unique(of_pairs, return_inverse=True)
        batch = {
            "pixels": torch.from_numpy(self.images[self.rows[chosen]]),
            "titles": torch.from_numpy(title_of.reshape(-1)),
            **self.titles.select(different),
        }
        if self.augment:
            # by what is in the batch, so that a training that was interrupted goes on with the same views
            chance = np.random.default_rng([self.seed, zlib.crc32(chosen.tobytes())])
            batch["draws"] = torch.from_numpy(chance.random((len(chosen), DRAWS), dtype=np.float32))
        return batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many steps a training has, and what it does when."""

    batch_size: int
    steps: int
    evaluate_every: int
    learning_rate: float
    precision: str
    device: str


def plan_steps(settings: TrainSettings, pairs: int, *, learning_rate: float, precision: str, device: str) -> Plan:
    """Batches are never larger than all there is; what does not fill the last one of an epoch waits for the next."""
    batch_size = min(settings.batch_size, pairs)
    steps = settings.epochs * (pairs // batch_size)
    return Plan(
        batch_size=batch_size,
        steps=steps,
        evaluate_every=settings.evaluate_every or max(LEAST_STEPS, steps // EVALUATIONS),
        learning_rate=learning_rate,
        precision=precision,
        device=device,
    )


class ContrastiveTrainer(Trainer):  # type: ignore[misc] # transformers' types are not looked at
    """The Trainer with a loss that must be finite, and with Recall@K as its evaluation."""

    def __init__(self, objective: Objective, judge: Judge | None, **more: Any) -> None:
        super().__init__(model=objective, **more)
        self._objective = objective
        self._judge = judge

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise _diverged(f"the loss is {loss.item()}", self.state.global_step + 1, self.args)
        return loss

    def evaluate(
        self,
        eval_dataset: Any = None,  # noqa: ARG002 - the signature is the Trainer's
        ignore_keys: Any = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        assert self._judge is not None  # noqa: S101 - evaluation is off without one
        self._objective.eval()
        with self.accelerator.autocast():
            found = self._judge.measure(self._objective)
        if found is None:
            raise _diverged("vectors are not finite", self.state.global_step, self.args)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _diverged(what: str, step: int, arguments: Any) -> ModelError:
    last = last_checkpoint(Path(arguments.output_dir))
    kept = f"the checkpoint of step {step_of(last):,} stays in {last}" if last else "there is no checkpoint yet"
    return ModelError(
        f"{what} at step {step:,}, where the training stopped",
        hint=f"{kept}; begin anew with --restart and a lower --learning-rate than {arguments.learning_rate:g}",
    )


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Tells how far the training is, notes the temperature beside the loss, and ends it in order when asked to."""

    def __init__(
        self,
        objective: Objective,
        plan: Plan,
        *,
        progress: Progress,
        stop: Stop,
        tell: Callable[[str], None],
        on_save: Callable[[], None],
    ) -> None:
        self._objective = objective
        self._plan = plan
        self._progress = progress
        self._stop = stop
        self._tell = tell
        self._on_save = on_save

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._objective.limit_scale()
        self._progress.step(state.global_step, state.max_steps, unit="steps")
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = control.should_save = True  # the last steps, at the lowest rate, are the best
        if self._stop.is_asked():
            control.should_save = control.should_training_stop = True
        # a checkpoint must be good; a gradient that is no number shows in the weights before it does in the loss
        if control.should_save and not self._objective.is_finite():
            raise _diverged("the weights are not finite", state.global_step, args)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._on_save()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - the Trainer's signature
        state.log_history[-1]["temperature"] = self._objective.temperature

    def on_evaluate(
        self,
        args: Any,  # noqa: ARG002
        state: Any,
        control: Any,  # noqa: ARG002
        *,
        metrics: Mapping[str, float],
        **_: Any,
    ) -> None:
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        loss = f"loss {losses[-1]:.3f}, " if losses else ""
        both = ", ".join(
            f"{way.replace('_', ' ')} {metrics[f'eval_{way}_recall@1']:.3f}"
            for way in ("image_to_text", "text_to_image")
        )
        self._tell(
            f"step {state.global_step:,} of {state.max_steps:,}: {loss}"
            f"temperature {self._objective.temperature:.3f}, Recall@1 {metrics['eval_recall@1']:.3f} ({both})"
        )


def make_trainer(
    objective: Objective,
    batches: Batches,
    judge: Judge | None,
    plan: Plan,
    *,
    settings: TrainSettings,
    folder: Path,
    reporter: Reporter,
) -> ContrastiveTrainer:
    """The trainer of one training, with its checkpoints in `folder`."""
    workers = count_workers(plan.device, plan.batch_size * batches.images[0].nbytes)
    arguments = _arguments(plan, settings, folder, has_judge=judge is not None, workers=workers)
    stopping = [] if judge is None else [EarlyStoppingCallback(settings.patience)]
    trainer = ContrastiveTrainer(
        objective,
        judge,
        args=arguments,
        data_collator=batches,
        train_dataset=range(len(batches)),
        eval_dataset=None if judge is None else range(len(judge)),  # asked for, and not looked at
        optimizers=(_optimizer(objective, plan, settings), None),
        callbacks=[reporter, *stopping],
    )
    trainer.remove_callback(PrinterCallback)  # which prints to standard output
    return trainer


def count_workers(device: str, batch_bytes: int, shared: Path = SHARED_MEMORY) -> int:
    """Processes that make batches beside the GPU's work; on a CPU they would take its cores.

    Their batches wait in shared memory: without room there (Docker gives 64 MB) a worker is killed by SIGBUS.
    """
    if device != "cuda":
        return 0
    free = shutil.disk_usage(shared).free if shared.is_dir() else sys.maxsize
    return WORKERS if free > WAITING_BATCHES * batch_bytes else 0


def _arguments(plan: Plan, settings: TrainSettings, folder: Path, *, has_judge: bool, workers: int) -> Any:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=plan.batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup * plan.steps),
        max_grad_norm=settings.max_grad_norm,
        bf16=plan.precision == "bf16",
        fp16=plan.precision == "fp16",
        use_cpu=plan.device == "cpu",
        seed=settings.seed,
        eval_strategy="steps" if has_judge else "no",
        eval_steps=plan.evaluate_every,
        save_strategy="steps",
        save_steps=plan.evaluate_every,
        save_total_limit=2,  # the best and the last
        restore_callback_states_from_checkpoint=True,  # or patience would begin anew with each command
        load_best_model_at_end=has_judge,
        metric_for_best_model=JUDGED_BY if has_judge else None,
        greater_is_better=True if has_judge else None,
        logging_strategy="steps",
        logging_steps=max(1, plan.steps // LOGS),
        logging_nan_inf_filter=False,  # or a loss that is no number would be shown as the one before
        log_level="critical",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=plan.device == "cuda",
        dataloader_num_workers=workers,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # of several it would give each a part of the batch to tell apart
    return arguments


def _optimizer(objective: Objective, plan: Plan, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW that pulls at matrices only: gains, biases, the class embedding and the temperature are none."""
    free = [weight for weight in objective.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in free if weight.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in free if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=BETAS, eps=EPSILON, fused=plan.device != "mps")
