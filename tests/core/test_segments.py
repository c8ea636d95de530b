"""Training in segments: the gradient of the whole sequence, with the memory of one segment."""

import gc
import itertools
import multiprocessing
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_core import CausalLM, State
from mamba_core.mixers import Capabilities, Mixer
from mamba_core.segments import check_streams, in_segments
from tests.core import helpers
from tests.core.helpers import pack, small_lm
from tests.core.test_models import MIXERS, model

LENGTH = 57
Batch = dict[str, Tensor]


def batch_of(length: int = LENGTH, packed: bool = False, rows: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(length)
    words = torch.randint(0, 16, (rows, length + 1), generator=generator)
    batch = {"tokens": words[:, :-1], "targets": words[:, 1:], "weights": torch.rand(rows, length, generator=generator)}
    return batch | ({"seq_idx": pack(length, rows)} if packed else {})


def loss_of(lm: nn.Module) -> Callable[[Batch, State | None], tuple[tuple[Tensor, Tensor], State]]:
    """Weighted cross entropy and the weights, summed."""

    def function(part: Batch, state: State | None) -> tuple[tuple[Tensor, Tensor], State]:
        logits, state = lm(part["tokens"], state, seq_idx=part.get("seq_idx"))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(logits.flatten(0, 1), part["targets"].flatten(), reduction="none")
        weights = part["weights"].to(losses.dtype)
        return ((losses * weights.flatten()).sum(), weights.sum()), state

    return function


def state_amid_a_document(lm: CausalLM, rows: int = 2) -> State:
    """After 20 tokens of document 0; its tensors want gradients."""
    with torch.no_grad():
        _, state = lm(batch_of(20, rows=rows)["tokens"], seq_idx=torch.zeros(rows, 20, dtype=torch.int64))
    return state.map(lambda t: t.detach().requires_grad_(t.is_floating_point()))


def gradients(lm: CausalLM, batch: Batch, state: State | None, length: int, **options: object) -> dict[str, Tensor]:
    """Loss, final state and all gradients of a mean loss that also looks at the final state."""
    lm.zero_grad()
    (total, weight), final = in_segments(loss_of(lm), lm.parameters(), batch, state, length=length, **options)  # type: ignore[arg-type]
    loss = total / weight
    (3.0 * loss + sum(t.square().sum() for t in final.values() if t.is_floating_point())).backward()
    found = {"loss": loss.detach(), "weight": weight.detach()} | {f"final {k}": t.detach() for k, t in final.items()}
    found |= {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}
    for name, tensor in (state or {}).items():
        if tensor.is_floating_point():
            assert tensor.grad is not None
            found[f"initial {name}"] = tensor.grad.clone()
            tensor.grad = None
    return found


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        error = (got[name] - tensor).double().norm() / tensor.double().norm().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("border_states", ["device", "cpu"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_are_those_of_the_whole_sequence(mixer: str, packed: bool, border_states: str) -> None:
    """Uneven segments down to a single token, documents that cross borders, the initial state."""
    lm, batch = model(mixer), batch_of(packed=packed)
    state = state_amid_a_document(lm)
    want = gradients(lm, batch, state, LENGTH)
    assert sum("initial" in name for name in want) == sum(t.is_floating_point() for t in state.values()) > 0
    assert all(tensor.norm() > 0 for name, tensor in want.items() if tensor.is_floating_point())
    for length in (28, 10) if border_states == "device" else (19,):
        assert_close(gradients(lm, batch, state, length, border_states=border_states), want, 1e-9)
    if not packed:
        assert_close(gradients(lm, batch, None, 14), gradients(lm, batch, None, LENGTH), 1e-9)


def test_a_sequence_of_one_segment_is_the_plain_call_to_the_bit() -> None:
    lm, batch = model("mamba2").float(), batch_of()
    lm.zero_grad()
    (total, weight), _ = loss_of(lm)(batch, None)
    (total / weight).backward()
    plain = {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}
    for length in (LENGTH, LENGTH + 1):
        lm.zero_grad()
        (total, weight), _ = in_segments(loss_of(lm), lm.parameters(), batch, length=length)
        (total / weight).backward()
        assert all(torch.equal(p.grad, plain[name]) for name, p in lm.named_parameters() if p.grad is not None)


def test_truncation_cuts_every_nth_border_and_no_other() -> None:
    """By hand: the same segments with a graph through them all, cut by detach."""
    lm, batch = model("mamba2"), batch_of()
    exact = gradients(lm, batch, None, 10)
    for every in (1, 2, 6):  # there are six segments: the last option cuts nothing
        lm.zero_grad()
        state, totals, weights = None, [], []
        for i, at in enumerate(range(0, LENGTH, 10)):
            if state is not None and i % every == 0:
                state = state.detach()
            (total, weight), state = loss_of(lm)({k: t[:, at : at + 10] for k, t in batch.items()}, state)
            totals.append(total)
            weights.append(weight)
        assert state is not None
        looked_at = sum(t.square().sum() for t in state.values() if t.is_floating_point())
        (3.0 * sum(totals) / sum(weights) + looked_at).backward()
        want = {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}
        got = gradients(lm, batch, None, 10, truncate_every=every)
        assert_close({name: got[name] for name in want}, want, 1e-9)
        differs = (got["embedding.weight"] - exact["embedding.weight"]).norm() / exact["embedding.weight"].norm()
        assert differs < 1e-9 if every == 6 else differs > 1e-5


def test_gradients_accumulate_and_scale() -> None:
    """Two batches before a step, each loss scaled as a gradient scaler does."""
    lm, batches = model("mamba2"), (batch_of(40), batch_of(31))

    def accumulated(length: int) -> dict[str, Tensor]:
        lm.zero_grad()
        for scale, batch in zip((1024.0, 0.5), batches, strict=True):
            (total, weight), _ = in_segments(loss_of(lm), lm.parameters(), batch, length=length)
            (scale * total / weight).backward()
        return {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}

    assert_close(accumulated(9), accumulated(99), 1e-9)


def test_every_parameter_is_told_once_a_step() -> None:
    lm, batch = model("mamba1"), batch_of()
    told: list[str] = []
    for name, parameter in lm.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: told.append(name))
    lm.embedding.weight.requires_grad_(False)
    (total, _), _ = in_segments(loss_of(lm), lm.parameters(), batch, length=8)
    total.backward()
    assert sorted(told) == sorted(name for name, _ in lm.named_parameters() if name != "embedding.weight")
    assert lm.embedding.weight.grad is None


def test_parameters_that_share_a_gradient_or_have_none() -> None:
    """autograd hands one tensor to both terms of a sum; summing in place must not count it twice."""
    a, b, unused = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(3))

    def function(part: Batch, state: State | None) -> tuple[tuple[Tensor], State]:
        level = torch.zeros(1, 3, dtype=torch.float64) if state is None else state["level"]
        level = level + (part["x"][..., None] * (a + b)).sum(1)
        return (level.square().sum(),), State({"level": level})

    x = torch.arange(1.0, 8.0, dtype=torch.float64)[None]
    (total,), _ = in_segments(function, [a, b, unused], {"x": x}, length=2)
    total.backward()
    sums = torch.tensor([3.0, 10.0, 21.0, 28.0], dtype=torch.float64)  # of x up to each border
    want = (2 * 2 * sums.square()).sum().expand(3)
    assert a.grad is not None
    assert b.grad is not None
    assert torch.allclose(a.grad, want, rtol=1e-14)
    assert torch.equal(a.grad, b.grad)
    assert unused.grad is None


@pytest.mark.parametrize("mixer", MIXERS)
def test_bfloat16_autocast(mixer: str) -> None:
    """Run again under the autocast of the call, though backward is called outside; gradients are float32 sums."""
    lm, batch = model(mixer).float(), batch_of(120)
    dtypes: list[torch.dtype] = []
    lm.head.register_forward_hook(lambda head, args, logits: dtypes.append(logits.dtype))

    def found(length: int, enabled: bool, inside: bool = False) -> dict[str, Tensor]:
        lm.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (total, weight), _ = in_segments(loss_of(lm), lm.parameters(), batch, length=length)
            loss = total / weight
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lm.parameters())
        return {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}

    exact, whole, cut, inside = found(120, False), found(120, True), found(25, True), found(25, True, inside=True)
    assert dtypes == [torch.float32] + [torch.bfloat16] * (1 + 2 * (5 + 4))
    for name, want in exact.items():
        of_whole, *of_cut = ((grads[name] - want).norm() / want.norm() for grads in (whole, cut, inside))
        assert max(of_cut) < 3 * of_whole + 1e-3, name  # two roundings of one sum


def test_bfloat16_weights_are_summed_in_float32() -> None:
    """512 segments whose gradients of 1 a sum in bfloat16 would stop at 256."""
    weight = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

    def function(part: Batch, state: State | None) -> tuple[tuple[Tensor], State]:
        return ((part["x"] * weight).sum(),), State({"none": torch.zeros(1)})

    (total,), _ = in_segments(function, [weight], {"x": torch.ones(1, 512, dtype=torch.bfloat16)}, length=1)
    total.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad == 512


def test_a_compiled_model_gives_the_same() -> None:
    lm, batch = model("mamba2"), batch_of(40, packed=True)
    want = gradients(lm, batch, None, 40)
    compiled = torch.compile(lm, backend="aot_eager")
    lm.zero_grad()
    (total, weight), final = in_segments(loss_of(compiled), lm.parameters(), batch, length=20)
    (3.0 * total / weight + sum(t.square().sum() for t in final.values() if t.is_floating_point())).backward()
    grads = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    assert_close(grads, {name: want[name] for name in grads}, 1e-9)
    assert len(grads) == len(list(lm.parameters()))


def test_one_segment_at_a_time_is_in_memory() -> None:
    """Counts the tokens of which a graph is alive: those of one segment, whatever the length; no logits of the whole.

    Nothing of the first pass is kept but states, and when all is done nothing is.
    """
    lm = model("mamba2")
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = [0]
    calls: list[bool] = []

    def function(part: Batch, state: State | None) -> tuple[tuple[Tensor, Tensor], State]:
        sums, after = loss_of(lm)(part, state)
        calls.append(torch.is_grad_enabled())
        # A graph lives as long as its result; a view of its input stands in for what it saves.
        stand_in = part["tokens"].clone()
        if torch.is_grad_enabled():
            sums = (_Holds.apply(sums[0], stand_in), sums[1])
        alive.add(stand_in)
        del stand_in
        most[0] = max(most[0], sum(t.shape[1] for t in alive))
        return sums, after

    (total, _), _ = in_segments(function, lm.parameters(), batch_of(60), length=10)
    assert calls == [False] * 5 + [True]
    assert sum(t.shape[1] for t in alive) == 10
    total.backward()
    assert calls == [False] * 5 + [True] * 6
    assert most[0] == 10
    gc.disable()
    try:
        del total
        assert len(alive) == 0  # by counting references alone: no cycle holds a graph
    finally:
        gc.enable()


class _Holds(torch.autograd.Function):
    """The identity, whose graph holds a second tensor."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, held: Tensor) -> Tensor:
        ctx.held = held  # type: ignore[attr-defined]
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


def test_a_state_that_is_a_view_does_not_keep_its_segment() -> None:
    weight = nn.Parameter(torch.ones(()))
    kept: list[int] = []

    def function(part: Batch, state: State | None) -> tuple[tuple[Tensor], State]:
        if state is not None and torch.is_grad_enabled():
            kept.append(state["tail"].untyped_storage().nbytes())
        y = part["x"] * weight
        return (y.sum(),), State({"tail": y[:, -1:]})

    (total,), _ = in_segments(function, [weight], {"x": torch.ones(1, 4000)}, length=1000)
    total.backward()
    assert kept[1:] == [4, 4]  # the first recorded is the last segment, run straight on


def test_without_gradients_segments_stream_by() -> None:
    lm, batch = model("mamba2"), batch_of(packed=True)
    with torch.no_grad():
        whole, final = loss_of(lm)(batch, None)
        sums, state = in_segments(loss_of(lm), lm.parameters(), batch, length=10)
    for a, b in itertools.chain(zip(sums, whole, strict=True), ((state[name], final[name]) for name in final)):
        assert (a - b).abs().max() < 1e-10
        assert not a.requires_grad


def test_what_changes_before_the_backward_pass_is_noticed() -> None:
    lm, batch = model("mamba2"), batch_of()
    (total, _), _ = in_segments(loss_of(lm), lm.parameters(), batch, length=20)
    with torch.no_grad():
        lm.head.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
    (total, _), _ = in_segments(loss_of(lm), lm.parameters(), batch, length=20)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length=0"),
        ({"length": 5, "truncate_every": 0}, "truncate_every=0"),
        ({"length": 5, "border_states": "disk"}, "border_states=disk: must be one of device, cpu"),
    ],
)
def test_settings_without_sense_are_named(options: dict, message: str) -> None:
    lm = model("mamba2")
    with pytest.raises(ValueError, match=message):
        in_segments(loss_of(lm), lm.parameters(), batch_of(), **options)


def test_a_parameter_left_out_is_noticed() -> None:
    """It would get no gradient, silently. One that is frozen is no matter, nor are those of an initial state."""
    lm, batch = small_lm("mamba2"), batch_of()
    state = state_amid_a_document(lm)
    forgotten = [p for name, p in lm.named_parameters() if name != "backbone.layers.0.mixer.D"]
    with pytest.raises(ValueError, match=r"depend on 1 tensors .* not among parameters \(of shape \(\d+,\)\)"):
        in_segments(loss_of(lm), forgotten, batch, state, length=5)
    lm.backbone.layers[0].mixer.D.requires_grad_(False)
    in_segments(loss_of(lm), forgotten, batch, state, length=5)


def test_sequences_that_cannot_be_cut_are_refused() -> None:
    lm, batch = model("mamba2"), batch_of()
    with pytest.raises(ValueError, match="of one length"):
        in_segments(loss_of(lm), lm.parameters(), batch | {"weights": batch["weights"][:, 1:]}, length=5)
    with pytest.raises(ValueError, match="weights wants a gradient"):
        in_segments(loss_of(lm), lm.parameters(), batch | {"weights": batch["weights"].requires_grad_()}, length=5)


def test_mixers_that_cannot_be_cut_are_named() -> None:
    class Average(Mixer):
        capabilities: ClassVar[Capabilities] = Capabilities(causal=False, streams=False, steps=False, packs=False)

        def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> tuple:
            return x.mean(1, keepdim=True).expand_as(x), self.init_state(x.shape[0])

        def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
            return x, state

        def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
            return State({"seq_idx": torch.zeros(batch)})

        def time_steps(self, x: Tensor) -> Tensor:
            return x

    lm = model("mamba2")
    check_streams(lm)
    lm.backbone.layers[1].mixer = Average()
    with pytest.raises(ValueError, match=r"backbone\.layers\.1\.mixer \(Average\) is not causal"):
        check_streams(lm)
    Average.capabilities = Capabilities(causal=True, streams=False, steps=False, packs=False)
    with pytest.raises(ValueError, match="carries no state from call to call"):
        check_streams(lm)


class Step(nn.Module):
    """A training step as one module, which DistributedDataParallel wraps."""

    def __init__(self, lm: CausalLM) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, batch: Batch, length: int) -> Tensor:
        (total, weight), _ = in_segments(loss_of(self.lm), self.lm.parameters(), batch, length=length)
        return total / weight


def train_one_rank(rank: int, folder: str) -> None:
    """Rank's row of the batch; leaves its gradients and the number of gradient synchronisations of two steps."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    step = nn.parallel.DistributedDataParallel(Step(model("mamba2")))
    buckets: list[int] = []

    def count(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        buckets.append(bucket.buffer().numel())
        reduced = bucket.buffer() / 2
        return torch.distributed.all_reduce(reduced, async_op=True).get_future().then(lambda done: done.value()[0])

    step.register_comm_hook(None, count)
    batch = {name: t[rank : rank + 1] for name, t in batch_of().items()}
    with step.no_sync():  # the first of two batches of a step
        step(batch, 10).backward()
    assert not buckets
    step(batch, 10).backward()
    grads = {name: p.grad for name, p in step.module.lm.named_parameters()}
    torch.save((grads, sum(buckets)), f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_synchronise_gradients_once_a_step(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=train_one_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    lm, batch = model("mamba2"), batch_of()
    for row in range(2):  # two accumulated batches of the same rows: the mean of the rows, twice
        Step(lm)({name: t[row : row + 1] for name, t in batch.items()}, LENGTH).backward()
    want = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    for rank in range(2):
        got, sent = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert_close(got, want, 1e-9)
        assert sent == sum(p.numel() for p in lm.parameters())  # every gradient, once


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_kernels_in_bfloat16(mixer: str, packed: bool) -> None:
    """In segments as near to float64 as the whole sequence is; border states in pinned memory give the same bits."""
    batch = batch_of(1000, packed)
    there = {name: t.to(helpers.DEVICE) for name, t in batch.items()}

    def found(lm: CausalLM, batch: Batch, length: int, where: str = "device") -> dict[str, Tensor]:
        lm.zero_grad()
        with torch.autocast(helpers.DEVICE, torch.bfloat16, enabled=lm.head.weight.dtype == torch.float32):
            (total, weight), _ = in_segments(loss_of(lm), lm.parameters(), batch, length=length, border_states=where)
        (total / weight).backward()
        return {name: p.grad.cpu() for name, p in lm.named_parameters() if p.grad is not None}

    exact = found(small_lm(mixer).double(), batch, 1000)
    lm = small_lm(mixer).to(helpers.DEVICE)
    whole, cut, offloaded = found(lm, there, 1000), found(lm, there, 300), found(lm, there, 300, "cpu")
    for name, want in exact.items():
        of_whole, of_cut = ((grads[name] - want).norm() / want.norm() for grads in (whole, cut))
        assert of_cut < 2 * of_whole + 2e-3, f"{name}: {of_cut:.1e}, whole {of_whole:.1e}"
        assert (offloaded[name] - cut[name]).norm() <= 1e-5 * cut[name].norm(), name


@pytest.mark.gpu
def test_memory_does_not_grow_with_length() -> None:
    lm = small_lm("mamba2").to(helpers.DEVICE)

    def peak(length: int) -> int:
        batch = {name: t.to(helpers.DEVICE) for name, t in batch_of(length, rows=1).items()}
        lm.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast(helpers.DEVICE, torch.bfloat16):
            (total, _), _ = in_segments(loss_of(lm), lm.parameters(), batch, length=4096, border_states="cpu")
        total.backward()
        return torch.cuda.max_memory_allocated() - before

    peak(8192)
    short, long = peak(8192), peak(65536)
    assert long < 1.05 * short
