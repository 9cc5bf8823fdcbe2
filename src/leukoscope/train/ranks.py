"""Training by several processes that `torchrun` started: together they do what one does alone.

Every process presents its part of each batch of the recipe; gradients are summed by
DistributedDataParallel. What one process draws or computes over a batch is drawn or computed over
the whole batch here too: dropout, the statistics of a normalisation that learns, mixup's partners.
Alone, every function here gives back what it was given.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from leukoscope.errors import InputError, LeukoscopeError
from leukoscope.files import atomic, output_folder

T = TypeVar("T")

# The first process judges a fold for minutes while the others wait. That a process died is seen at
# once, by its closed connection; that a host did, by torchrun.
PATIENCE = datetime.timedelta(hours=6)

_alone = False


def world() -> int:
    """How many processes train together; 1 where only this one does."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world() > 1 else 0


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Within the block the processes that torchrun started know each other: by NCCL between GPUs,
    by gloo between CPUs. InputError in the others where one of them ends."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu and local() < torch.cuda.device_count():
        torch.cuda.set_device(local())
    with _stopped_by_torchrun():
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)
            yield
        except RuntimeError as problem:
            # Of gloo they share no class, but each names its source file.
            if isinstance(problem, dist.DistError) or "gloo" in str(problem):
                raise _ended() from None
            raise
        dist.destroy_process_group()


def local() -> int:
    """This process's number on its host, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _ended() -> InputError:
    return InputError(
        "Another of the processes that train together ended, or torchrun was stopped",
        fix="Run the same command with --resume; it goes on after the last whole epoch.",
        field="resume",
    )


@contextlib.contextmanager
def _stopped_by_torchrun() -> Iterator[None]:
    """torchrun sends SIGTERM to the others where one process dies: said, not dropped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _ended()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within the block this process works by itself while the others wait for the next fold."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What goes wrong in the block in any process stops all, and the first one says it, once."""
    problem: LeukoscopeError | None = None
    try:
        yield
    except LeukoscopeError as caught:
        if world() == 1:
            raise
        problem = caught
    failed = torch.zeros(world(), dtype=torch.int64)
    failed[rank()] = problem is not None
    failed = total(failed)
    if not failed.any():
        return
    number = int(failed.argmax())
    mine = problem and [problem.exit_code, problem.message, problem.fix, problem.field]
    code, message, fix, field = json.loads(_sent(json.dumps(mine).encode(), number))
    if not first():
        raise SystemExit(code)
    raise problem or InputError(f"Process {number}: {message}", fix=fix, field=field)


def same(value: T) -> T:
    """What the first process has, of what JSON can hold."""
    return value if world() == 1 else json.loads(_sent(json.dumps(value).encode(), 0))


def fetch(path: Path) -> None:
    """Give the other processes, at the same path of theirs, the file that the first one has."""
    if world() == 1:
        return
    data = _sent(path.read_bytes() if first() else b"", 0)
    if not first():
        output_folder(path.parent)
        with atomic(path, durable=False) as temporary:
            temporary.write_bytes(data)


def _sent(data: bytes, source: int) -> bytes:
    """The bytes that process `source` gave; those of the others don't matter."""
    length = torch.tensor(len(data))
    dist.broadcast(length, source)
    held = torch.zeros(int(length), dtype=torch.uint8)
    if rank() == source:
        held = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(held, source)
    return held.numpy().tobytes()


def total(value: Tensor) -> Tensor:
    """The sum over the processes, the same bits in each."""
    if world() == 1:
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def share(n: int, block: int = 1) -> np.ndarray:
    """This process's places among n, contiguous, in whole blocks; the shares differ by one block
    at most."""
    blocks = np.arange(-(-n // block))
    own = np.array_split(blocks, world())[rank()]
    return np.arange(own[0] * block, min(n, (own[-1] + 1) * block)) if len(own) else own


def parallel(module: nn.Module) -> nn.Module:
    """The module with gradients averaged over the processes, for the parameters that learn now."""
    if world() == 1:
        return module
    # The batch's statistics are the whole batch's already, so buffers can't drift apart.
    return DistributedDataParallel(module, forward_sync_buffers=False)


def whole_batch(n: int) -> contextlib.AbstractContextManager[Any]:
    """Within the block a forward pass of this process's `share` of n images draws its dropout, and
    takes its normalisation statistics, from all n."""
    return contextlib.nullcontext() if world() == 1 else _WholeBatch(n)


class _WholeBatch(TorchFunctionMode):
    """Catches the functions by which one image's result hangs on a batch, whatever module calls
    them, so that the networks stay as they are, and so do their checkpoints."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.own = n, torch.from_numpy(share(n))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        settings = kwargs or {}
        if func is functional.dropout and settings.get("training", True):
            kept = functional.dropout(self._all(args[0]).fill_(1), settings.get("p", 0.5))
            return args[0] * kept[self.own]
        if func is Tensor.bernoulli_:  # stochastic depth
            drawn = self._all(args[0]).bernoulli_(*args[1:], **settings)
            return args[0].copy_(drawn[self.own])
        if func is functional.batch_norm and settings.get("training"):
            return _batch_norm(*args, **settings)
        return func(*args, **settings)

    def _all(self, mine: Tensor) -> Tensor:
        """An empty tensor of the whole batch that lies in memory as `mine` does, so that the
        numbers are drawn in the same order."""
        made = mine.new_empty((self.n, *mine.shape[1:]))
        by_channels = mine.dim() == 4 and mine.is_contiguous(memory_format=torch.channels_last)
        return made.contiguous(memory_format=torch.channels_last) if by_channels else made


def _batch_norm(
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,  # noqa: ARG001
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """functional.batch_norm with the statistics of all processes' images; on any device, where
    torch's SyncBatchNorm wants a GPU."""
    normed, mean, var, count = _Normalised.apply(images, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_((var * (count / (count - 1).clamp(min=1))).to(var.dtype), momentum)
    return normed


class _Normalised(torch.autograd.Function):
    """weight (x - mean) / sqrt(var + eps) + bias by channel over all processes' values, with its
    gradient (Ioffe and Szegedy 2015, section 3); also mean and (biased) var, (channels,), and of
    how many values they are.

    By torch's kernels for given statistics: spelt out, the same arithmetic goes over the batch ten
    times, which made two processes hardly faster than one.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, ...]:
        values, shape, around = _by_channel(images)
        size = values.new_tensor([images.numel() // images.shape[1]])
        sums = total(torch.cat([values.sum(around), size]).double())
        count = sums[-1]
        mean = (sums[:-1] / count).to(values.dtype)
        squares = (values - mean.view(shape)).square_().sum(around)
        var = (total(squares.double()) / count).to(values.dtype)
        ctx.save_for_backward(images, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        normed = functional.batch_norm(values, mean, var, weight, bias, False, 0.0, eps)
        return normed.to(images.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        images, weight, mean, var, count = ctx.saved_tensors
        values, shape, _ = _by_channel(images)
        # As if mean and variance were given: what they owe to the images comes off below.
        found, along, sums = torch.ops.aten.native_batch_norm_backward(
            gradients[0].to(values.dtype), values, weight, mean, var, None, None, False, ctx.eps,
            [True, True, True],
        )  # fmt: skip
        means = (total(torch.stack([sums, along]).double()) / count).to(values.dtype)
        narrow = (var + ctx.eps).rsqrt()
        scale = narrow if weight is None else narrow * weight
        owed = (values - mean.view(shape)).mul_((scale * narrow * means[1]).view(shape))
        found.sub_(owed.add_((scale * means[0]).view(shape)))
        _, weighted, biased, _ = ctx.needs_input_grad
        own = (along if weighted else None, sums if biased else None)
        return found.to(images.dtype), *own, None


def _by_channel(images: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """In single precision or better; the shape of one value a channel; the other dimensions."""
    values = images.to(torch.promote_types(images.dtype, torch.float32))
    others = [0, *range(2, images.dim())]
    return values, [1, -1, *[1] * (images.dim() - 2)], others
