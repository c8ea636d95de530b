"""Decoding: a step that costs one launch."""

from collections.abc import Callable

import torch
from torch import Tensor

from mamba_core.causal_lm import CausalLM
from mamba_core.state import State

_WARM_UPS = 2  # the first compiles kernels and sets up cuBLAS, the second finds everything as a capture wants it


class Graphed:
    """``y = call(*inputs)`` for a function that advances a state where it lies: on a GPU one replay of a CUDA graph.

    So a call costs one launch in place of hundreds; elsewhere the function itself runs. Bits are the function's either
    way. Weights and the state are read and written where they lay when this was made; autocast is as it was then (under
    it each call casts the weights anew, so a model in bfloat16 is faster).
    """

    def __init__(self, function: Callable[..., Tensor], state: State, *inputs: Tensor):
        """Capture ``function``, which advances ``state`` in place.

        Args:
            function: of tensors shaped as ``inputs``; no gradients.
            state: of a fixed size; left as it is.
            inputs: on the state's device; their memory is taken for those of later calls.
        """
        self.state = state
        self._function = function
        self._inputs = inputs
        device = next(iter(state.values())).device
        kind = device.type
        self._autocast = _autocast_as_it_is(kind)
        self._graph: torch.cuda.CUDAGraph | None = None
        if kind == "cuda":
            with torch.cuda.device(device):
                self._capture()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result, which the next call overwrites; inputs may lie on any device."""
        if self._graph is None:
            return self._eager(*[given.to(fixed.device) for fixed, given in zip(self._inputs, inputs, strict=True)])
        for fixed, given in zip(self._inputs, inputs, strict=True):
            fixed.copy_(given)
        self._graph.replay()
        return self._output

    @torch.no_grad()
    def _eager(self, *inputs: Tensor) -> Tensor:
        with self._autocast:
            return self._function(*inputs)

    def _capture(self) -> None:
        before = self.state.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    self._eager(*self._inputs)
        finally:
            torch.cuda.current_stream().wait_stream(side)
            self.state.copy_(before)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            self._output = self._eager(*self._inputs)
        self._graph = graph


class GraphedStep:
    """``logits = step(tokens)`` on one batch of rows: :meth:`CausalLM.step_` with the state inside, :class:`Graphed`.

    The state is that very ``state``, advanced where it lies: clone it first to keep where it stood, and copy another
    into it (:meth:`State.copy_`) to carry on from there.

    A state that grows (attention without a window) has no fixed place: then :meth:`CausalLM.step` runs, on a GPU too,
    and ``state`` is another after each token.
    """

    def __init__(self, model: CausalLM, state: State):
        """Capture a step of ``model`` that carries on from ``state``, which is left as it is."""
        self.model = model
        self.state = state.detach()
        self.device = next(iter(state.values())).device
        self._fixed = model.backbone.capabilities.constant_state
        self._autocast = _autocast_as_it_is(self.device.type)
        if self._fixed:
            with torch.inference_mode(False):  # so that step() may be called in that mode and out of it
                tokens = torch.zeros(self.state.batch, dtype=torch.int64, device=self.device)
            self._step = Graphed(lambda tokens: model.step_(tokens, self.state), self.state, tokens)

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
        if self._fixed:
            return self._step(tokens)
        with torch.no_grad(), self._autocast:
            logits, self.state = self.model.step(tokens.to(self.device), self.state)
            return logits


def _autocast_as_it_is(kind: str) -> torch.autocast:
    """What is set now, for later calls. Without the cache of cast weights, which is emptied when autocast ends: a graph
    would read what is gone."""
    return torch.autocast(
        kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    )
