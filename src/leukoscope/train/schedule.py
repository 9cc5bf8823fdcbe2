"""Learning rates by epoch, as torch's own schedulers give them."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler
from torch.optim.swa_utils import SWALR

from leukoscope.train.settings import Averaging


def learning_rates(initial: float, epochs: int, schedule: str, averaging: Averaging) -> list[float]:
    """The learning rate of each of `epochs` epochs (the first is `initial`).

    `cosine` anneals to 0 over all epochs (Loshchilov & Hutter 2017, eq. 5, without restarts);
    from epoch `averaging.start` on SWALR takes over. Computed ahead, so that a resumed run needs
    no scheduler's state.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=initial)
    base: LRScheduler = (
        CosineAnnealingLR(optimizer, T_max=epochs)
        if schedule == "cosine"
        else LambdaLR(optimizer, lambda _: 1.0)
    )
    averaged: LRScheduler | None = None
    rates = []
    for epoch in range(1, epochs + 1):
        if averaging.start and epoch >= averaging.start and averaged is None:
            averaged = SWALR(
                optimizer,
                swa_lr=initial * averaging.factor,
                anneal_epochs=averaging.anneal_epochs,
                anneal_strategy="cos",
            )
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        (averaged or base).step()
    return rates
