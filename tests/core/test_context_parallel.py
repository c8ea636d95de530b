"""One sequence split over processes against the same sequence in one: outputs, states, and every gradient."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_core import BackboneConfig, CausalLM, Mamba1Config, Mamba2Config, State
from mamba_core.context_parallel import own_tokens, shard_sequence, sum_gradients, take
from mamba_core.mixers import split_ops
from mamba_core.segments import in_segments
from tests.core.helpers import assert_same

LENGTH, PROCESSES = 24, 4
PATTERNS = {"mamba1": ["mamba1"], "mamba2": ["mamba2"], "mixed": ["mamba2", "mamba1"]}
# Documents that are longer than a slice (of 6 or 12 tokens), end at a border, are shorter than a convolution; an index
# that comes back; padding alone for as long as a slice, at a border, and inside a document.
DOCUMENTS = (
    [0] * 11 + [1] * 13,
    [0] * 12 + [2] * 2 + [3] * 10,
    [-1] * 7 + [4] * 3 + [-1] * 8 + [4] * 3 + [5] * 3,
    [7] * 5 + [-1] * 3 + [8] * 3 + [7] * 1 + [8] * 12,
)
Result = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    pattern: str
    size: int  # ranks that a sequence is split over; the rows are split over the groups of that size
    packed: bool = False
    state: bool = False  # one comes in; else the model begins afresh
    segment: int | None = None  # tokens that a rank works on at a time
    d_conv: int = 4
    forgets: bool = False  # time steps so large that no state outlives a few tokens

    def __str__(self) -> str:
        told = [
            f"{self.pattern} over {self.size}",
            *[name for name in ("packed", "state", "forgets") if vars(self)[name]],
        ]
        return " ".join(told + ([f"segments of {self.segment}"] * bool(self.segment)) + [f"width {self.d_conv}"])


CASES = [
    *[Case(pattern, size, packed=size == 2, state=size == 4) for pattern in PATTERNS for size in (2, 4)],
    *[Case(pattern, 4, packed=True, state=True) for pattern in ("mamba1", "mamba2")],
    Case("mixed", 4, packed=True, state=True, d_conv=1),
    Case("mixed", 4, packed=True, state=True, d_conv=8),
    Case("mixed", 4, d_conv=8),
    *[Case(pattern, 2, state=True, forgets=True) for pattern in ("mamba1", "mamba2")],
    Case("mixed", 2, packed=True, state=True, segment=5),
    Case("mixed", 4, segment=2),
]


def make_model(case: Case) -> CausalLM:
    torch.manual_seed(0)
    limit = (0.005, 0.1) if case.packed else (0.0, float("inf"))
    config = BackboneConfig(
        d_model=8,
        n_layers=2,
        pattern=PATTERNS[case.pattern],
        mamba1=Mamba1Config(d_state=4, d_conv=case.d_conv, dt_limit=limit),
        mamba2=Mamba2Config(d_state=8, headdim=4, groups=2, d_conv=case.d_conv, dt_limit=limit),
    )
    lm = CausalLM(7, config).double()
    if case.forgets:
        for _, block in lm.backbone.blocks():
            nn.init.constant_(block.mixer.dt_bias, 300.0)
    return lm


def make_state(lm: CausalLM, rows: int) -> State:
    """Random, in the middle of document 0."""
    generator = torch.Generator().manual_seed(1)
    return State(
        {
            name: torch.randn(t.shape, generator=generator, dtype=t.dtype).requires_grad_()
            if t.is_floating_point()
            else torch.zeros_like(t)
            for name, t in lm.init_state(rows).items()
        }
    )


def make_sequences(case: Case) -> Result:
    generator = torch.Generator().manual_seed(3)
    rows = len(DOCUMENTS)
    sequences = {
        "tokens": torch.randint(0, 7, (rows, LENGTH), generator=generator),
        "targets": torch.randint(0, 7, (rows, LENGTH), generator=generator),
        "weights": torch.rand(rows, LENGTH, generator=generator).double(),
    }
    return sequences | ({"seq_idx": torch.tensor(DOCUMENTS)} if case.packed else {})


def measure(case: Case, group: dist.ProcessGroup | None, rows: slice, own: list[slice], segment: int) -> Result:
    """What one process makes of its rows and tokens: the loss over them and its share of one over the final state."""
    lm = make_model(case)
    share = 1.0
    if group is not None:
        share /= shard_sequence(lm, group).size
    sequences = {name: take(tensor[rows], own) for name, tensor in make_sequences(case).items()}
    state = make_state(lm, len(DOCUMENTS)) if case.state else None

    def sum_losses(part: Result, state: State | None) -> tuple[tuple[Tensor, ...], State]:
        logits, state = lm(part["tokens"], state, seq_idx=part.get("seq_idx"))
        losses = F.cross_entropy(logits.flatten(0, 1), part["targets"].flatten(), reduction="none")
        return ((losses * part["weights"].flatten()).sum(),), state

    entering = None if state is None else state.rows(rows)
    (loss,), final = in_segments(sum_losses, lm.parameters(), sequences, entering, length=segment)
    generator = torch.Generator().manual_seed(4)
    for tensor in final.values():
        if tensor.is_floating_point() and tensor.numel():
            direction = torch.randn(len(DOCUMENTS), *tensor.shape[1:], generator=generator, dtype=tensor.dtype)
            loss = loss + share * (tensor * direction[rows]).sum()
    loss.backward()
    found = {f"gradient of {name}": parameter.grad for name, parameter in lm.named_parameters()}
    if state is not None:
        found |= {f"gradient of state {k}": t.grad for k, t in state.items() if t.is_floating_point() and t.numel()}
    if group is not None:
        leaves = [*lm.parameters(), *(state or {}).values()]
        sum_gradients(leaves, dist.group.WORLD)
        dist.all_reduce(loss.detach_())
    return found | {"loss": loss.detach()} | {f"final {name}": tensor.detach() for name, tensor in final.items()}


def work(rank: int, folder: Path) -> None:
    """One of PROCESSES processes: all cases, and what goes wrong."""
    torch.set_num_threads(1)
    split_ops.BLOCK = 4  # several to a slice
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / "meet"), PROCESSES), rank=rank, world_size=PROCESSES
    )
    groups = {size: dist.new_subgroups(size)[0] for size in (2, PROCESSES)}
    found = {}
    for case in CASES:
        count = len(DOCUMENTS) * case.size // PROCESSES  # rows of one group
        first = rank // case.size * count
        own = own_tokens(LENGTH, rank % case.size, case.size, case.segment)
        found[str(case)] = measure(case, groups[case.size], slice(first, first + count), own, case.segment or LENGTH)
    lm = make_model(CASES[0])
    mixer = lm.backbone.layers[1].mixer
    mixer.capabilities = replace(mixer.capabilities, splits=False)
    with pytest.raises(ValueError, match=r"^backbone.layers.1.mixer \(Mamba1\) cannot work on a sequence"):
        shard_sequence(lm, groups[2])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Result]]:
    """What each process measured, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(work, (folder,), nprocs=PROCESSES, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_split_equals_whole(case: Case, found: list[dict[str, Result]]) -> None:
    whole = measure(case, None, slice(None), [slice(None)], LENGTH)
    ranks = [result[str(case)] for result in found]
    finals = [name for name in whole if name.startswith("final")]
    for name in finals:
        groups = [ranks[at : at + case.size] for at in range(0, PROCESSES, case.size)]
        assert all(torch.equal(group[0][name], one[name]) for group in groups for one in group), "the same on all"
        together = torch.cat([group[0][name] for group in groups])
        assert_same({name: whole[name]}, {name: together})
    for one in ranks:
        assert_same({name: tensor for name, tensor in whole.items() if name not in finals}, one)
    assert not case.state or any(tensor.any() for name, tensor in whole.items() if name.startswith("gradient of state"))


def test_tokens_of_a_rank() -> None:
    assert own_tokens(12, 1, 2) == [slice(6, 12)]
    assert own_tokens(22, 1, 2, segment=4) == [slice(4, 8), slice(12, 16), slice(19, 22)]
    with pytest.raises(ValueError, match="13 tokens cannot be split evenly over 2"):
        own_tokens(13, 0, 2)
    parts = [take(torch.arange(22)[None], own_tokens(22, rank, 2, segment=4)) for rank in range(2)]
    assert torch.equal(torch.cat(parts, 1).sort().values[0], torch.arange(22))
