"""What a recipe may say about training. Needs no torch, so that recipes are checked without."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from leukoscope.tables import Table

Rate = Annotated[float, Field(gt=0, le=10)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=100_000)]
Trained = Literal["head", "last", "all"]


class Phase(Table):
    """One stretch of training, with an optimizer of its own.

    `trained` says what learns: the `head` alone, the head and the `last` `layers` layers of the
    backbone (counted as models.layers says), or `all`. With `unfreeze_every` = k > 0 the backbone
    thaws gradually: a stage at the start, one more, towards the input, every k epochs.
    """

    trained: Trained = "all"
    layers: Annotated[int, Field(ge=0, le=10_000)] = 0
    unfreeze_every: Annotated[int, Field(ge=0, le=100_000)] = 0
    epochs: Count = 1

    @model_validator(mode="after")
    def _consistent(self) -> Phase:
        if (self.trained == "last") != (self.layers > 0):
            raise ValueError("`layers` is above 0 exactly where `trained` is 'last'")
        if self.unfreeze_every and self.trained != "all":
            raise ValueError("`unfreeze_every` needs `trained` = 'all'")
        return self


class Averaging(Table):
    """Stochastic weight averaging (Izmailov et al. 2018) over the epochs from `start` on.

    From there the learning rates glide within `anneal_epochs` epochs, along a cosine, to `factor`
    times their initial values and stay (torch's SWALR). `start` 0: no averaging.
    """

    start: Annotated[int, Field(ge=0, le=100_000)] = 0
    factor: Rate = 0.5
    anneal_epochs: Count = 5


class Training(Table):
    """Optimisation: learning rates a step, losses in nats.

    `phases` follow each other, each from the best epoch of the one before; without them there is
    one, of `trained` and `epochs`. `backbone_learning_rate` 0: that of the head. `steps_per_epoch`
    0: every row once. `validate_every` n > 0: an epoch of the history ends after n steps, however
    long a pass through the rows is. `patience` counts validations. `focal_gamma` 0: cross-entropy.
    `box_weight`: weight of a detector's box loss. `mixup`: alpha of its Beta distribution, 0 for
    none. Mixed precision is used where the device gains from it: on a GPU.
    """

    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)]
    backbone_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Annotated[int, Field(ge=2, le=65536)]
    trained: Trained = "all"
    layers: Annotated[int, Field(ge=0, le=10_000)] = 0
    epochs: Count = 1
    phases: list[Phase] = []
    steps_per_epoch: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    validate_every: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    patience: Count
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 0.0
    box_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    averaging: Averaging = Averaging()
    mixed_precision: bool = False

    @property
    def stretches(self) -> list[Phase]:
        """The phases in order; the single one where none are listed."""
        return self.phases or [Phase(trained=self.trained, layers=self.layers, epochs=self.epochs)]

    @property
    def backbone_learns(self) -> bool:
        """Whether any phase changes more than the head."""
        return any(phase.trained != "head" for phase in self.stretches)

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        last = self.stretches[-1]  # building the single phase checks it
        if self.averaging.start > last.epochs:
            raise ValueError(
                f"averaging.start is {self.averaging.start}, but the last phase has "
                f"{last.epochs} epochs"
            )
        return self
