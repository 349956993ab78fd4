"""Gradient descent with early stopping; a training that was interrupted continues to the same result."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import GeomGNNError


class Trainer:
    """Trains a lobe in place and holds everything that changes from epoch to epoch.

    Parameters
    ----------
    samples
        (N,) indices that each epoch passes over once, in shuffled batches of about `batch_size`.
    loss_of
        Called as loss_of(indices of a batch, generator); it takes its random numbers from the generator.
    lr, weight_decay
        Learning rate and weight decay of AdamW.
    seed
        Seed of the shuffling, the loss and the lobe's dropout; torch's own generators are left as they were.
    """

    def __init__(
        self,
        lobe: nn.Module,
        samples: Tensor,
        loss_of: Callable[[Tensor, torch.Generator], Tensor],
        *,
        batch_size: int,
        lr: float,
        weight_decay: float,
        seed: int,
    ):
        self._lobe, self._samples, self._loss_of = lobe, samples, loss_of
        self._batches = max(1, round(len(samples) / batch_size))
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        trainable = [p for p in lobe.parameters() if p.requires_grad]
        self._device = trainable[0].device
        self._optimiser = torch.optim.AdamW(trainable, lr=lr, weight_decay=weight_decay)
        self.epoch = 0  # the next one
        self.best_epoch = 0
        self.best: dict | None = None
        self.history: dict[str, list[float]] = {"loss": [], "train": [], "validation": []}

    def train(
        self,
        rate: Callable[[int], tuple[float, float | None]],
        *,
        epochs: int,
        patience: int,
        resume: dict | None,
        keep: Callable[[Callable[[], dict]], None] | None,
        progress: Callable[[int, int, float, float | None], None] | None,
    ) -> None:
        """Train until the validation score has not risen for `patience` epochs; the lobe ends with the best weights.

        `rate` is called after each epoch with its index, while the lobe is in evaluation mode. It returns the training and
        the validation score; if the latter is None, the last weights count as the best. `resume`, `keep` and `progress` are
        as in `train_vampnet`.
        """
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.default_generator.manual_seed(self._seed)  # for a lobe with dropout
            if resume is not None:
                self._restore(resume)
            while self.epoch < epochs and self.epoch - self.best_epoch <= patience:
                self.history["loss"].append(self._pass_over_samples())
                self._lobe.eval()
                scores = rate(self.epoch)
                self._note(*scores)
                if keep is not None:
                    keep(self.state)
                if progress is not None:
                    progress(self.epoch - 1, epochs, *scores)
        if self.best is not None:  # None where no epoch was trained
            self._lobe.load_state_dict(self.best)
        self._lobe.eval()

    def _pass_over_samples(self) -> float:
        """Take one step per batch and return the mean loss."""
        self._lobe.train()
        shuffled = self._samples[torch.randperm(len(self._samples), generator=self._generator)]
        total = 0.0
        for batch in shuffled.tensor_split(self._batches):
            loss = self._loss_of(batch, self._generator)
            if not torch.isfinite(loss):
                raise GeomGNNError(
                    f"The loss became {loss.item()} in epoch {self.epoch}: take a lower learning rate or a "
                    "larger batch, and check that the tokens are of ordinary size."
                )
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self._optimiser.step()
            total += loss.item()
        return total / self._batches

    def _note(self, train_score: float, validation_score: float | None) -> None:
        """Record the scores of an epoch; keep its weights if they are the best, or if there is no validation score."""
        earlier = self.history["validation"]
        if validation_score is None or not earlier or validation_score > earlier[self.best_epoch]:
            self.best_epoch, self.best = self.epoch, copy.deepcopy(self._lobe.state_dict())
        self.history["train"].append(train_score)
        if validation_score is not None:
            self.history["validation"].append(validation_score)
        self.epoch += 1

    def state(self) -> dict:
        """Everything that a training with the same data and settings needs to continue from here."""
        return {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "lobe": self._lobe.state_dict(),
            "best": self.best,
            "optimiser": self._optimiser.state_dict(),
            "generator": self._generator.get_state(),
            "default_generator": torch.default_generator.get_state(),
            "device_generator": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }

    def _restore(self, state: dict) -> None:
        self.epoch, self.best_epoch, self.history = state["epoch"], state["best_epoch"], state["history"]
        self.best = state["best"]
        self._lobe.load_state_dict(state["lobe"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._generator.set_state(state["generator"])
        torch.default_generator.set_state(state["default_generator"])
        if state["device_generator"] is not None:
            torch.cuda.set_rng_state(state["device_generator"], self._device)
