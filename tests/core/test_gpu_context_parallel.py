"""One sequence split over two GPUs by NCCL against the same sequence on one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from mamba_core import BackboneConfig, CausalLM, Mamba1Config, Mamba2Config, State
from mamba_core.context_parallel import own_tokens, shard_sequence, sum_gradients, take
from mamba_core.segments import in_segments
from tests.core.helpers import assert_same, pack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
PROCESSES, LENGTH, SEGMENT = 2, 8192, 1024
CASES = [(dtype, packed) for dtype in (torch.float32, torch.bfloat16) for packed in (False, True)]
# Of the gradients; as two roundings of one sum differ. In bf16 the whole differs as much from float32.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def measure(dtype: torch.dtype, packed: bool, rank: int, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Loss, final state and gradients of a model of both mixers, in segments."""
    device = torch.device("cuda", rank)
    torch.manual_seed(0)
    config = BackboneConfig(
        d_model=128,
        n_layers=2,
        pattern=["mamba2", "mamba1"],
        mamba1=Mamba1Config(),
        mamba2=Mamba2Config(d_state=64, headdim=32, groups=2),
    )
    lm = CausalLM(16, config).to(device)
    size = 1 if group is None else shard_sequence(lm, group).size
    tokens = torch.randint(0, 16, (2, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    sequences = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]} | ({"seq_idx": pack(LENGTH)} if packed else {})
    own = own_tokens(LENGTH, rank, size, SEGMENT)
    sequences = {name: take(tensor, own).to(device) for name, tensor in sequences.items()}

    def sum_losses(part: dict[str, Tensor], state: State | None) -> tuple[tuple[Tensor, ...], State]:
        logits, state = lm(part["inputs"], state, seq_idx=part.get("seq_idx"))
        return (F.cross_entropy(logits.float().flatten(0, 1), part["targets"].flatten(), reduction="sum"),), state

    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        (total,), final = in_segments(sum_losses, lm.parameters(), sequences, length=SEGMENT)
    (total / LENGTH).backward()
    loss = total.detach()
    if group is not None:
        sum_gradients(lm.parameters(), group)
        dist.all_reduce(loss)
    found = {f"gradient of {name}": parameter.grad for name, parameter in lm.named_parameters()}
    found |= {f"final {name}": tensor for name, tensor in final.items()} | {"loss": loss}
    return {name: tensor.detach().cpu() for name, tensor in found.items() if tensor is not None}


def work(rank: int, folder: Path) -> None:
    torch.cuda.set_device(rank)
    store = dist.FileStore(str(folder / "meet"), PROCESSES)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=PROCESSES)
    found = [measure(*case, rank, dist.group.WORLD) for case in CASES]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Tensor]]]:
    """What each process measured, case by case."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(work, (folder,), nprocs=PROCESSES, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{dtype} packed={packed}" for dtype, packed in CASES])
def test_two_gpus_equal_one(number: int, found: list[list[dict[str, Tensor]]]) -> None:
    dtype, packed = CASES[number]
    whole = measure(dtype, packed, 0, None)
    for result in found:
        assert_same(whole, result[number], TOLERANCE[dtype])
    assert all(
        torch.equal(tensor, found[1][number][name]) for name, tensor in found[0][number].items() if "final" in name
    )
