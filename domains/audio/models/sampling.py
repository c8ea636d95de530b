"""Drawing sound from a generator, level by level: on a GPU, a whole block of samples is one launch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.audio.models.generator import Generator
from domains.audio.tokens import SILENCE
from mamba_core import State

_WARM_UPS = 2  # the first compiles kernels and sets up cuBLAS, the second finds everything as a capture wants it
_LEAST_TEMPERATURE = 1e-3


def draw(logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Draw one level for each row by inverting the distribution function; nothing waits for a GPU.

    Args:
        logits: (b, levels) any floating dtype.
        uniform: (b,) float64 from 0 to 1, which decide.
        temperature: divides the logits.
        top_p: the likeliest levels whose probabilities reach this sum are left, the others are never drawn.

    Returns:
        int64 (b,).
    """
    p = (logits.double() / temperature).softmax(-1)
    order = None
    if top_p < 1:
        p, order = p.sort(dim=-1, descending=True, stable=True)
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)
    reached = p.cumsum(-1)
    # The last level with any probability catches what rounding leaves.
    level = (reached <= uniform[:, None] * reached[:, -1:]).sum(-1, keepdim=True)
    level = torch.minimum(level, (reached < reached[:, -1:]).sum(-1, keepdim=True))
    return (level if order is None else order.gather(-1, level)).squeeze(-1)


class Sampler:
    """``levels = sampler.read(n)``: continuations of a batch of sounds, in constant time and memory a sample.

    The steps of a block of samples, with what is drawn between them, are captured in one CUDA graph; elsewhere they
    run one by one. The same seed gives the same sound on the same hardware.

    Args:
        model: in evaluation mode.
        state: where all rows have read equally many samples; it is advanced where it lies.
        logits: (b, levels) for the next sample of each row, as the model gave them with the state.
        temperature, top_p: see :func:`draw`.
        seed: of all that is drawn.

    Raises:
        ValueError: a temperature or top_p out of range, or rows that have not read equally many samples.
    """

    def __init__(
        self,
        model: Generator,
        state: State,
        logits: Tensor,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> None:
        if temperature < _LEAST_TEMPERATURE or not 0 < top_p <= 1:
            raise ValueError(
                f"temperature={temperature}, top_p={top_p}: must be at least {_LEAST_TEMPERATURE}, and above 0 and at "
                "most 1"
            )
        position = model.stages.position(state)
        if not bool((position == position[0]).all()):
            raise ValueError("rows that are sampled together must have read equally many samples")
        self._model, self._state = model, state.detach()
        self._temperature, self._top_p = temperature, top_p
        self._position = int(position[0])
        self._random = torch.Generator().manual_seed(seed)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._ready: list[Tensor] = []  # (n, b) int64 each: drawn, and not read yet
        with torch.inference_mode(False):  # so that read() may be called in that mode and out of it
            self._logits = logits.detach().clone()
            self._uniform = torch.zeros(model.block, len(logits), dtype=torch.float64, device=logits.device)

    @torch.no_grad()
    def read(self, count: int) -> Tensor:
        """The next ``count`` samples of each row: uint8 (b, count), on the CPU."""
        while (missing := count - sum(map(len, self._ready))) > 0:
            self._ready.append(self._more(missing))
        levels = torch.cat(self._ready)
        self._ready = [levels[count:]]
        return levels[:count].T.byte().cpu()

    def _more(self, missing: int) -> Tensor:
        """Some samples (n, b): up to the end of a block, or a whole one; on a CPU no more than are missing."""
        block, start = self._model.block, self._position
        wait = self._logits.is_cuda
        count = block - start if wait else min(missing, block - start)
        # One call a sample: then what is drawn does not depend on how many are read at a time.
        rows = [torch.rand(len(self._logits), dtype=torch.float64, generator=self._random) for _ in range(count)]
        self._uniform[:count].copy_(torch.stack(rows), non_blocking=True)
        self._position = (start + count) % block
        if not wait or count < block:
            return self._run(start, count)
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        self._graph.replay()
        return self._levels.clone()

    def _run(self, start: int, count: int) -> Tensor:
        """Draw and read ``count`` samples from place ``start`` of a block on."""
        levels = []
        for i in range(count):
            level = draw(self._logits, self._uniform[i], self._temperature, self._top_p)
            self._logits.copy_(self._model.step_(level, self._state, start + i))
            levels.append(level)
        return torch.stack(levels)

    def _capture(self) -> None:
        before, logits = self._state.clone(), self._logits.clone()
        with torch.cuda.device(self._logits.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(side):
                    for _ in range(_WARM_UPS):
                        self._run(0, self._model.block)
            finally:
                torch.cuda.current_stream().wait_stream(side)
                self._state.copy_(before)
                self._logits.copy_(logits)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._levels = self._run(0, self._model.block)
            self._graph = graph


@torch.no_grad()
def read_prompt(model: Generator, levels: Tensor, chunk: int = 65536) -> tuple[Tensor, State]:
    """Read what sounds begin with: integer levels (b, n), n possibly 0, on the model's device.

    Returns:
        logits (b, levels) for the sample behind it, and the state.
    """
    state: State | None = None
    for piece in F.pad(levels.long(), (1, 0), value=SILENCE).split(chunk, dim=1):
        logits, state = model(piece, state)
    assert state is not None
    return logits[:, -1], state
