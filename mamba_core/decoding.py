"""Decoding: a step that costs one launch."""

import torch
from torch import Tensor

from mamba_core.causal_lm import CausalLM
from mamba_core.state import State

_WARM_UPS = 2  # the first compiles kernels and sets up cuBLAS, the second finds everything as a capture wants it


class GraphedStep:
    """``logits = step(tokens)`` on one batch of rows: :meth:`CausalLM.step_` with the state inside.

    On a GPU the whole step is captured in a CUDA graph and replayed, so that a token costs one launch in place of
    hundreds; elsewhere ``step_`` itself runs. Bits are those of ``step_`` either way.

    The state is that very ``state``, advanced where it lies: clone it first to keep where it stood, and copy another
    into it (:meth:`State.copy_`) to carry on from there. Weights, too, are read where they lay when this was made.
    Autocast is as it was then; under it each step casts the weights anew, so a model in bfloat16 is faster.

    A state that grows (attention without a window) has no fixed place: then :meth:`CausalLM.step` runs, on a GPU too,
    and ``state`` is another after each token.
    """

    def __init__(self, model: CausalLM, state: State):
        """Capture a step of ``model`` that carries on from ``state``, which is left as it is."""
        self.model = model
        self.state = state.detach()
        self.device = next(iter(state.values())).device
        kind = self.device.type
        # No cache of cast weights: it is emptied when autocast ends, and a graph would read what is gone.
        self._autocast = torch.autocast(
            kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
        )
        self._graph: torch.cuda.CUDAGraph | None = None
        self._fixed = model.backbone.capabilities.constant_state
        if kind == "cuda" and self._fixed:
            self._capture()

    def step(self, tokens: Tensor) -> Tensor:
        """Advance each row by one token.

        Args:
            tokens: (b,) integer, on any device.

        Returns:
            logits (b, vocab_size). The next call overwrites them.

        Raises:
            ValueError: tokens for another number of rows than the state has.
        """
        if tokens.shape != (self.state.batch,):
            raise ValueError(
                f"this step was made for {self.state.batch} rows, one token each; got tokens {tuple(tokens.shape)}. "
                "Another batch wants a GraphedStep of its own"
            )
        if self._graph is None:
            return self._eager(tokens.to(self.device))
        self._tokens.copy_(tokens)
        self._graph.replay()
        return self._logits

    def _eager(self, tokens: Tensor) -> Tensor:
        with self._autocast:
            if self._fixed:
                return self.model.step_(tokens, self.state)
            with torch.no_grad():
                logits, self.state = self.model.step(tokens, self.state)
                return logits

    def _capture(self) -> None:
        with torch.inference_mode(False):  # so that step() may be called in that mode and out of it
            self._tokens = torch.zeros(self.state.batch, dtype=torch.int64, device=self.device)
        with torch.cuda.device(self.device):
            before = self.state.clone()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(side):
                    for _ in range(_WARM_UPS):
                        self._eager(self._tokens)
            finally:
                torch.cuda.current_stream().wait_stream(side)
                self.state.copy_(before)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
                self._logits = self._eager(self._tokens)
            self._graph = graph
