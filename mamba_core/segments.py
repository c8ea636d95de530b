"""Training over a sequence that does not fit: the exact gradient, with the memory of one segment.

Forward, the segments run one after the other without a graph, and only the states at their borders are kept. Backward,
from the last segment to the first, each is run again from its saved incoming state, now with a graph, and sends back
the gradient of its losses and of its outgoing state; what arrives at its incoming state goes on to the segment before.
The last segment is run once: its graph is built in the forward pass and kept. So k segments cost (k - 1) / k of a
forward pass more than the whole sequence would, and a state is small: 1 MB a layer for Mamba-2 at width 1024. (One that
grows, as that of attention without a window does, is kept at every border: exact, but no longer small.)

This is checkpointing in time (Chen et al. 2016, arXiv:1604.06174) with the state as what is kept.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mamba_core.mixers.base import Mixer
from mamba_core.state import State

BORDER_STATES = ("device", "cpu")

Sums = tuple[Tensor, ...]
# What is done with a stretch of the sequences, from the state before it: sums over its positions, the state behind it.
Part = Callable[[dict[str, Tensor], State | None], tuple[Sums, State]]
Gradients = dict[str, Tensor]  # of the tensors of a state, by name


def check_streams(model: nn.Module) -> None:
    """Make sure that every mixer of a model can be run in segments.

    Raises:
        ValueError: one looks ahead, or carries no state from call to call; the message names the first such.
    """
    for name, mixer in model.named_modules():
        if isinstance(mixer, Mixer) and not (mixer.capabilities.causal and mixer.capabilities.streams):
            fault = "carries no state from call to call" if mixer.capabilities.causal else "is not causal"
            raise ValueError(f"{name} ({type(mixer).__name__}) {fault}, so the model cannot be trained in segments")


def in_segments(
    function: Part,
    parameters: Iterable[Tensor],
    sequences: Mapping[str, Tensor],
    state: State | None = None,
    *,
    length: int,
    truncate_every: int | None = None,
    border_states: str = "device",
) -> tuple[Sums, State]:
    """Sums over a sequence of any length, differentiable by parameters and initial state, one segment at a time.

    ::

        def loss(part, state):
            logits, state = model(part["tokens"], state)
            return (F.cross_entropy(logits.flatten(0, 1), part["targets"].flatten(), reduction="sum"),), state

        (total,), state = in_segments(loss, model.parameters(), {"tokens": ..., "targets": ...}, length=131072)
        (total / count).backward()

    The gradient equals that of one call on the whole sequence, up to rounding. Parameters get theirs once, when
    the backward pass has been through all segments, so hooks on them (those of DistributedDataParallel among them) run
    once a step. Segments are run again under the autocast in force at this call, and gradients of parameters are
    summed in float32 at least. Without gradients the segments stream by and nothing is kept. A sequence of at most
    ``length`` tokens is one plain call of ``function``.

    Args:
        function: called with a stretch of the sequences and the state before it (None: fresh, of the first alone);
            returns sums over its positions, () each, and the state behind it. Head and loss belong inside, or logits
            would exist for the whole length. It must give the same numbers when called again: no dropout.
        parameters: what ``function`` depends on beside its arguments.
        sequences: (b, l, ...) each, without gradient; all are cut along l.
        state: before the first token. Its floating-point tensors get gradients, seq_idx and the like do not.
        length: tokens of a segment; the last may be shorter.
        truncate_every: None for the exact gradient. n: no gradient passes backward over every n-th border. That is
            truncated backpropagation through time: the gradient is biased, what a token did to the loss more than n
            segments later is never learned, and nothing is faster for it.
        border_states: where the states at the borders wait: ``device``, or ``cpu``, pinned and copied without waiting.

    Returns:
        The sums over all segments, and the state behind the last token, differentiable too.

    Raises:
        ValueError: a count below 1, an unknown place for border states, sequences of different lengths, or one that
            wants a gradient; ``function`` depends on a tensor that wants a gradient and is not among ``parameters``.
    """
    if length < 1 or (truncate_every is not None and truncate_every < 1):
        raise ValueError(f"length={length}, truncate_every={truncate_every}: must be at least 1")
    if border_states not in BORDER_STATES:
        raise ValueError(f"border_states={border_states}: must be one of {', '.join(BORDER_STATES)}")
    total = _common_length(sequences)
    if total <= length:
        return function(dict(sequences), state)
    parts = [{name: t[:, at : at + length] for name, t in sequences.items()} for at in range(0, total, length)]
    if not torch.is_grad_enabled():
        return _stream(function, parts, state)
    device = next(iter(sequences.values())).device.type
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    run = _Run(function, parts, wanted, state, truncate_every, border_states == "cpu", _autocast(device))
    given = [] if state is None else [state[name] for name in _differentiable(state)]
    outputs = _Segments.apply(run, *given, *wanted)
    behind, run.final = run.final, None  # or outputs would hold their graph, and their graph them
    assert behind is not None
    names = _differentiable(behind)
    count = len(outputs) - len(names)
    return outputs[:count], State({**behind, **dict(zip(names, outputs[count:], strict=True))})


def _common_length(sequences: Mapping[str, Tensor]) -> int:
    lengths = {name: tensor.shape[1] for name, tensor in sequences.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"sequences that are cut into segments must be of one length; got {lengths}")
    for name, tensor in sequences.items():
        if tensor.requires_grad:
            raise ValueError(f"{name} wants a gradient, but sequences that are cut into segments get none")
    return next(iter(lengths.values()))


def _stream(function: Part, parts: list[dict[str, Tensor]], state: State | None) -> tuple[Sums, State]:
    sums, state = function(parts[0], state)
    for part in parts[1:]:
        more, state = function(part, state)
        sums = _add(sums, more)
    return sums, state


def _add(sums: Sums, more: Sums) -> Sums:
    return tuple(a + b for a, b in zip(sums, more, strict=True))


def _differentiable(state: State) -> list[str]:
    """Names of the tensors that carry a gradient."""
    return [name for name, tensor in state.items() if tensor.is_floating_point() or tensor.is_complex()]


def _autocast(device: str) -> dict[str, Any]:
    """The autocast now in force, as arguments of torch.autocast."""
    return {
        "device_type": device,
        "enabled": torch.is_autocast_enabled(device),
        "dtype": torch.get_autocast_dtype(device),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }


@dataclass
class _Graph:
    """One segment, run with a graph: leaves, and what was made of them."""

    incoming: State | None
    sums: Sums
    outgoing: State

    def check_leaves(self, parameters: list[Tensor]) -> None:
        """Make sure that every tensor the outputs depend on gets its gradient, or raise a ValueError.

        The graph is walked once a call, for the last segment: a millisecond beside the seconds of a step.
        """
        known = {id(tensor) for tensor in parameters}
        if self.incoming is not None:
            known |= {id(tensor) for tensor in self.incoming.values()}
        outputs = [*self.sums, *self.outgoing.values()]
        waiting = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
        seen = set(waiting)
        missing: dict[int, Tensor] = {}
        while waiting:
            node = waiting.pop()
            leaf = getattr(node, "variable", None)  # of a node that accumulates into a leaf
            if leaf is not None and id(leaf) not in known:
                missing[id(leaf)] = leaf
            for follower, _ in node.next_functions:
                if follower is not None and follower not in seen:
                    seen.add(follower)
                    waiting.append(follower)
        if missing:
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in list(missing.values())[:3])
            raise ValueError(
                f"in_segments: the sums depend on {len(missing)} tensors that want a gradient and are not among "
                f"parameters (of shape {shapes}{', ...' if len(missing) > 3 else ''}); give all, or freeze them"
            )

    def gradients(
        self, of_sums: tuple[Tensor | None, ...], of_state: Gradients, parameters: list[Tensor]
    ) -> tuple[list[Tensor | None], Gradients]:
        """Gradients of the parameters and of the incoming state, from those of the sums and the outgoing state."""
        pairs = [*zip(self.sums, of_sums, strict=True), *((self.outgoing[name], g) for name, g in of_state.items())]
        pairs = [(output, grad) for output, grad in pairs if grad is not None and output.requires_grad]
        if not pairs:
            return [None] * len(parameters), {}
        names = [] if self.incoming is None else _differentiable(self.incoming)
        leaves = [self.incoming[name] for name in names] if self.incoming is not None else []
        outputs, grads = zip(*pairs, strict=True)
        # autograd.grad, not backward: parameters are told once, at the end of it all.
        found = torch.autograd.grad(outputs, [*leaves, *parameters], grads, allow_unused=True)
        of_incoming = {name: g for name, g in zip(names, found, strict=False) if g is not None}
        return list(found[len(names) :]), of_incoming


@dataclass
class _Run:
    """One call of :func:`in_segments`: what forward and backward have in common."""

    function: Part
    parts: list[dict[str, Tensor]]
    parameters: list[Tensor]
    initial: State | None
    truncate_every: int | None
    on_cpu: bool
    autocast: dict[str, Any]
    final: State | None = None  # what forward leaves here: its integer tensors are no outputs of autograd

    def pass_by(self, i: int, state: State | None) -> tuple[Sums, State]:
        """Run segment i without a graph."""
        with torch.no_grad():
            return self.function(self.parts[i], state)

    def record(self, i: int, state: State | None) -> _Graph:
        """Run segment i with a graph that begins at its incoming state."""
        with torch.autocast(**self.autocast), torch.enable_grad():
            if state is not None:
                names = set(_differentiable(state))
                state = State({k: t.detach().requires_grad_() if k in names else t for k, t in state.items()})
            return _Graph(state, *self.function(self.parts[i], state))

    def keep(self, state: State) -> State:
        """A state that waits for the backward pass."""
        return state.map(_to_host if self.on_cpu else _without_surroundings)

    def fetch(self, state: State | None) -> State | None:
        """A kept state on the device of the sequences."""
        device = next(iter(self.parts[0].values())).device
        return None if state is None else state.map(lambda tensor: tensor.to(device, non_blocking=True))

    def cuts(self, i: int) -> bool:
        """Whether gradients end at the border before segment i."""
        return self.truncate_every is not None and i > 0 and i % self.truncate_every == 0


def _to_host(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, made in its turn on the GPU's stream: a millisecond there, and nobody waits for it."""
    if tensor.device.type != "cuda":
        return _without_surroundings(tensor)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _without_surroundings(tensor: Tensor) -> Tensor:
    """The tensor, copied if it is a view of something larger that it would keep in memory."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > 2 * tensor.nbytes else tensor


class _Totals:
    """Sums of the parameters' gradients, float32 at least. None stands for a parameter that got none."""

    def __init__(self, parameters: list[Tensor]):
        self._dtypes = [torch.promote_types(parameter.dtype, torch.float32) for parameter in parameters]
        self._parameters = parameters
        self._sums: list[Tensor | None] = [None] * len(parameters)

    def add(self, grads: list[Tensor | None]) -> None:
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            total = self._sums[i]
            # A copy first: autograd may hand one tensor to two parameters.
            self._sums[i] = grad.to(self._dtypes[i], copy=True) if total is None else total.add_(grad)

    def finished(self) -> list[Tensor | None]:
        pairs = zip(self._sums, self._parameters, strict=True)
        return [None if total is None else total.to(parameter.dtype) for total, parameter in pairs]


class _Segments(torch.autograd.Function):
    """(run, initial state ..., parameters ...) -> (sums ..., final state ...)."""

    @staticmethod
    def forward(ctx: Any, run: _Run, *tensors: Tensor) -> Sums:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)  # so that autograd notices when one is overwritten before the backward pass
        last = len(run.parts) - 1
        sums, state = run.pass_by(0, run.initial)
        ctx.borders = [run.initial]
        for i in range(1, last):
            ctx.borders.append(run.keep(state))
            more, state = run.pass_by(i, state)
            sums = _add(sums, more)
        ctx.run, ctx.graph = run, run.record(last, state)
        ctx.graph.check_leaves(run.parameters)
        run.final = ctx.graph.outgoing.detach()
        sums = tuple(total + one.detach() for total, one in zip(sums, ctx.graph.sums, strict=True))
        ctx.mark_non_differentiable(*(total for total in sums if not total.is_floating_point()))
        return (*sums, *(run.final[name] for name in _differentiable(run.final)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        run, graph, borders = ctx.run, ctx.graph, ctx.borders
        _ = ctx.saved_tensors  # the check
        ctx.graph = None
        if graph is None:
            raise RuntimeError("a loss summed in segments can be backpropagated once: its graph is gone")
        of_sums, of_final = grads[: len(graph.sums)], grads[len(graph.sums) :]
        names = _differentiable(graph.outgoing)
        of_state = {name: g for name, g in zip(names, of_final, strict=True) if g is not None}
        totals = _Totals(run.parameters)
        for i in reversed(range(len(run.parts))):
            if graph is None:
                graph = run.record(i, run.fetch(borders.pop()))
            of_parameters, of_state = graph.gradients(of_sums, of_state, run.parameters)
            graph = None  # before the next is made
            totals.add(of_parameters)
            del of_parameters
            if run.cuts(i):
                of_state = {}
        of_initial = [] if run.initial is None else [of_state.get(name) for name in _differentiable(run.initial)]
        return (None, *of_initial, *totals.finished())
