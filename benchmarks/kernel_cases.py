"""What the kernel benchmark runs: inputs, and the same call on each side.

Inputs are random and fresh in every process. Sequences are strided views as a mixer makes them: x, B and C of one
convolution's output, dt and z of one projection's. Both sides get the same tensors and the same arguments (dt bias,
softplus, D, no initial state; z is fused into the selective scan, and left to the norm after ssd). Weights of layers
are bfloat16, but A_log, D and dt_bias, on both sides: no autocast, no casts. Attention stands in the case ssd: both
mix a sequence of width d_model without its projections; PyTorch chooses its kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import peers, transformer
from benchmarks.jobs import EXPAND, HEADDIM, LAYERS, STATE, WIDTH, Job, Settings
from mamba_core import BackboneConfig, CausalLM
from mamba_core.mixers import Mamba1Config, Mamba2Config, Mixer
from mamba_core.ops.causal_conv1d import causal_conv1d
from mamba_core.ops.gated_rms_norm import gated_rms_norm
from mamba_core.ops.selective_scan import selective_scan
from mamba_core.ops.ssd import ssd

VOCABULARY = 16  # of the decode rows
L2_BYTES = 60 << 20  # H100 and H200: 50 and 60 MB
KEPT_FP32 = ("A_log", "D", "dt_bias")
Tensors = dict[str, Tensor]


@dataclass
class Work:
    """One side of a job: a function of one set of inputs, and the sets, which are used in turn.

    ``grad`` of a set is the incoming gradient; every other entry, and every parameter, gets a gradient.
    """

    function: Callable[[Tensors], Tensor]
    sets: list[Tensors]
    parameters: tuple[Tensor, ...] = ()
    trains: bool = True
    note: str | None = None

    def infer(self, turn: int) -> Tensor:
        """Forward alone, without a graph."""
        with torch.no_grad():
            return self.function(self.sets[turn % len(self.sets)])

    def train(self, turn: int) -> tuple[Tensor, ...]:
        """Forward and backward: the output, then the gradients of all inputs and parameters."""
        chosen = self.sets[turn % len(self.sets)]
        leaves = [tensor for name, tensor in chosen.items() if name != "grad"]
        y = self.function(chosen)
        return (y.detach(), *torch.autograd.grad(y, [*leaves, *self.parameters], chosen["grad"]))


class OneThread(Work):
    """The backward in the thread that calls it; by itself PyTorch has one for each device."""

    def train(self, turn: int) -> tuple[Tensor, ...]:
        with torch.autograd.set_multithreading_enabled(False):
            return super().train(turn)


@dataclass  # without which Work's __init__ would stand, and not call __post_init__
class Graphed(Work):
    """Both calls as CUDA graphs over memory of their own, to which the inputs of a turn are copied."""

    def __post_init__(self) -> None:
        self.rotating = self.sets
        self.sets = [
            {name: tensor.detach().clone().requires_grad_(name != "grad") for name, tensor in self.sets[0].items()}
        ]
        infer, train = super().infer, super().train
        self._infer, self._train = captured(lambda: infer(0)), captured(lambda: train(0))

    def _take(self, turn: int) -> None:
        with torch.no_grad():
            for name, tensor in self.rotating[turn % len(self.rotating)].items():
                self.sets[0][name].copy_(tensor)

    def infer(self, turn: int) -> Tensor:
        self._take(turn)
        return self._infer()

    def train(self, turn: int) -> tuple[Tensor, ...]:
        self._take(turn)
        return self._train()


def input_sets(kind: str, job: Job, settings: Settings) -> list[Tensors]:
    """Sets of inputs, enough to exceed the L2 cache four times (16 at most): no call finds its inputs there."""
    first = make_inputs(kind, job.batch, job.length, settings)
    if settings.device == "cpu":
        return [first]
    size = sum(tensor.numel() * tensor.element_size() for tensor in first.values())
    count = min(16, -(-4 * L2_BYTES // size))
    return [first, *(make_inputs(kind, job.batch, job.length, settings) for _ in range(count - 1))]


def make_inputs(kind: str, batch: int, length: int, settings: Settings) -> Tensors:
    """Leaves for one kind of case, bfloat16 but for A, D and dt_bias (float32)."""
    d_model, device = settings.d_model, settings.device
    inner = EXPAND * d_model
    heads = inner // HEADDIM

    def sequence(*widths: int) -> list[Tensor]:
        """Slices of one (b, l, sum of widths) tensor, as a projection's output is split."""
        whole = torch.randn(batch, length, sum(widths), dtype=torch.bfloat16, device=device)
        return list(whole.split(widths, dim=-1))

    def steps(size: int) -> Tensor:
        """dt_bias with softplus(dt_bias) log-uniform in [1e-3, 0.1]."""
        dt = torch.exp(torch.rand(size, device=device) * 4.6 - 6.9)
        return dt + torch.log(-torch.expm1(-dt))

    tensors: Tensors
    if kind == "ssd":
        n = STATE["mamba2"]
        x, B, C = sequence(inner, n, n)
        dt = sequence(2 * inner + 2 * n, heads)[1]
        tensors = {"x": x.unflatten(-1, (heads, HEADDIM)), "dt": dt, "A": -1 - 15 * torch.rand(heads, device=device)}
        tensors |= {"B": B.unflatten(-1, (1, n)), "C": C.unflatten(-1, (1, n))}
        tensors |= {"D": torch.ones(heads, device=device), "dt_bias": steps(heads)}
        tensors["grad"] = sequence(inner)[0].unflatten(-1, (heads, HEADDIM))
    elif kind == "selective_scan":
        n = STATE["mamba1"]
        _, B, C = sequence(d_model // 16, n, n)
        A = -torch.arange(1.0, n + 1, device=device).repeat(inner, 1)
        tensors = {"x": sequence(inner)[0], "dt": sequence(inner)[0], "A": A}
        tensors |= {"B": B.unsqueeze(2), "C": C.unsqueeze(2), "z": sequence(inner, inner)[1]}
        tensors |= {"D": torch.ones(inner, device=device), "dt_bias": steps(inner), "grad": sequence(inner)[0]}
    elif kind == "conv":
        channels = inner + 2 * STATE["mamba2"]
        weight = torch.rand(channels, WIDTH, dtype=torch.bfloat16, device=device) - 0.5
        tensors = {"x": sequence(inner, channels, heads)[1], "weight": weight, "bias": weight[:, 0].clone()}
        tensors["grad"] = sequence(channels)[0]
    elif kind == "norm":
        z = sequence(inner, inner + 2 * STATE["mamba2"], heads)[0]
        weight = torch.ones(inner, dtype=torch.bfloat16, device=device)
        tensors = {"y": sequence(inner)[0], "z": z, "weight": weight, "grad": sequence(inner)[0]}
    elif kind == "attention":
        qkv = sequence(d_model, d_model, d_model)
        tensors = {name: part.unflatten(-1, (-1, 64)).transpose(1, 2) for name, part in zip("qkv", qkv, strict=True)}
        tensors["grad"] = sequence(d_model)[0].unflatten(-1, (-1, 64)).transpose(1, 2)
    else:  # a layer
        tensors = {"x": sequence(d_model)[0], "grad": sequence(d_model)[0]}
    return {name: t.detach().requires_grad_(name != "grad") for name, t in tensors.items()}


def build(job: Job, impl: str, settings: Settings, sets: list[Tensors]) -> Work:
    """One side of a job. ``sets`` are those of :func:`input_kind`.

    Raises:
        ValueError: the implementation has nothing for this case.
        ImportError, FileNotFoundError: it is not installed here.
    """
    if job.case == "decode":
        return _decode(job, impl, settings)
    if (impl, job.case) == ("transformer", "decode_after"):
        return _decode_after(job, settings)
    if job.case in ("mamba1_layer", "mamba2_layer"):
        layer, note = make_layer(impl, job.case.removesuffix("_layer"), settings)
        kind = {"graph": Graphed, "one thread": OneThread}.get(job.mode, Work)

        def call(x: Tensor) -> Tensor:
            return call_layer(layer, x)

        function = torch.compile(call) if job.mode == "compile" else call
        return kind(lambda t: function(t["x"]), sets, tuple(layer.parameters()), note=note)
    if (impl, job.case) == ("mamba_ssm", "ssd"):
        scan = peers.load(settings.peer, "ops.triton.ssd_combined").mamba_chunk_scan_combined
        return Work(
            lambda t: scan(
                t["x"], t["dt"], t["A"], t["B"], t["C"], 256, D=t["D"], dt_bias=t["dt_bias"], dt_softplus=True
            ),
            sets,
        )
    functions: dict[tuple[str, str], Callable[[Tensors], Tensor]] = {
        ("serpentine", "ssd"): lambda t: ssd(**_operands(t))[0],
        ("serpentine", "selective_scan"): lambda t: selective_scan(**_operands(t))[0],
        ("serpentine", "conv"): lambda t: causal_conv1d(**_operands(t))[0],
        ("serpentine", "norm"): lambda t: gated_rms_norm(t["y"], t["z"], t["weight"], 1e-5),
        ("attention", "ssd"): lambda t: F.scaled_dot_product_attention(t["q"], t["k"], t["v"], is_causal=True),
    }
    if (impl, job.case) not in functions:
        raise ValueError(f"{impl} has no {job.case} that runs here")
    return Work(functions[impl, job.case], sets)


def input_kind(case: str, impl: str) -> str:
    """Which inputs a side takes: implementations of the same kind share the tensors."""
    return "attention" if impl == "attention" else case


def _operands(tensors: Tensors) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if name != "grad"}


def mixer_configs() -> dict[str, Mamba1Config | Mamba2Config]:
    """The mixers of the benchmark."""
    return {
        "mamba1": Mamba1Config(d_state=STATE["mamba1"], expand=EXPAND, d_conv=WIDTH),
        "mamba2": Mamba2Config(d_state=STATE["mamba2"], expand=EXPAND, d_conv=WIDTH, headdim=HEADDIM),
    }


def make_layer(impl: str, mixer: str, settings: Settings) -> tuple[nn.Module, str | None]:
    """A layer in bfloat16, and what a reader should know of it."""
    if impl == "serpentine":
        return halved(mixer_configs()[mixer].build(settings.d_model, 1e-5), settings.device), None
    if impl != "mamba_ssm":
        raise ValueError(f"{impl} has no {mixer} layer")
    if mixer == "mamba1":
        layer = peers.load(settings.peer, "modules.mamba_simple").Mamba(
            settings.d_model, d_state=STATE[mixer], expand=EXPAND, d_conv=WIDTH
        )
    else:
        layer = peers.load(settings.peer, "modules.mamba2").Mamba2(
            settings.d_model,
            d_state=STATE[mixer],
            expand=EXPAND,
            d_conv=WIDTH,
            headdim=HEADDIM,
            use_mem_eff_path=False,
        )
    return halved(layer, settings.device), peers.NO_CONV


def halved(module: nn.Module, device: str) -> nn.Module:
    """The module on the device in bfloat16, but for the parameters that steer the decay."""
    module = module.to(device)
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] not in KEPT_FP32:
            parameter.data = parameter.data.to(torch.bfloat16)
    return module


def call_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """y of either side's layer, without the state that ours returns beside it."""
    return layer(x)[0] if isinstance(layer, Mixer) else layer(x)


class PeerStack(nn.Module):
    """mamba_ssm's decoding step in a stack like ours: embedding, pre-norm, residual, head. Its states are bfloat16."""

    def __init__(self, mixer: str, batch: int, settings: Settings):
        super().__init__()
        self.width = settings.d_model
        layers: list[Any] = [make_layer("mamba_ssm", mixer, settings)[0] for _ in range(LAYERS)]
        self.layers = nn.ModuleList(layers)
        self.embedding = nn.Embedding(VOCABULARY, self.width)
        self.head = nn.Linear(self.width, VOCABULARY, bias=False)
        self.norms = nn.ParameterList(torch.ones(self.width) for _ in range(LAYERS + 1))
        self.states = [layer.allocate_inference_cache(batch, 1, dtype=torch.bfloat16) for layer in layers]
        halved(self, settings.device)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (b, vocabulary) of one token of each row (b,)."""
        x = self.embedding(tokens)[:, None]
        layer: Any  # mamba_ssm's, with a step
        for layer, norm, state in zip(self.layers, self.norms, self.states, strict=False):
            x = x + layer.step(F.rms_norm(x, (self.width,), norm, 1e-5), *state)[0]
        return self.head(F.rms_norm(x, (self.width,), self.norms[-1], 1e-5))[:, 0]


@torch.no_grad()
def _decode(job: Job, impl: str, settings: Settings) -> Work:
    """One token of each row through LAYERS layers of a mixer."""
    assert job.mixer is not None
    tokens = torch.randint(0, VOCABULARY, (job.batch,), device=settings.device)
    step: Callable[[Tensor], Tensor]
    if impl == "serpentine":
        model = decoder(job.mixer, settings)
        state = model.init_state(job.batch, settings.device)
        if job.variant == "bf16 state":
            state = state.scans_in(torch.bfloat16)
        if settings.device != "cpu":
            from mamba_core.ops.decode import triton

            triton.PDL = job.variant != "no pdl"
        if job.mode == "graph":
            from mamba_core.decoding import GraphedStep

            step, note = GraphedStep(model, state).step, None
        else:
            step, note = lambda tokens: model.step_(tokens, state), None
    elif impl == "mamba_ssm":
        stack = PeerStack(job.mixer, job.batch, settings)
        step, note = stack, f"bf16 states; {peers.NO_CONV}"
        if job.mode == "graph":
            fixed = tokens.clone()
            replay = captured(lambda: stack(fixed))

            def step(tokens: Tensor) -> Tensor:
                fixed.copy_(tokens)
                return replay()
    else:
        raise ValueError(f"{impl} does not decode")
    return Work(lambda t: step(t["tokens"]), [{"tokens": tokens}], trains=False, note=note)


@torch.no_grad()
def _decode_after(job: Job, settings: Settings) -> Work:
    """One token of each row through a Transformer of the same weights, behind a cache of ``job.length`` tokens."""
    tokens = torch.randint(0, VOCABULARY, (job.batch,), device=settings.device)
    model = transformer.Decoder(
        VOCABULARY, settings.d_model, LAYERS, job.batch, job.length, job.variant or "gqa", settings.device
    )
    if job.mode != "graph" or settings.device == "cpu":
        return Work(lambda t: model(t["tokens"]), [{"tokens": tokens}], trains=False)
    fixed = tokens.clone()
    replay = captured(lambda: model(fixed))

    def step(t: Tensors) -> Tensor:
        fixed.copy_(t["tokens"])
        return replay()

    return Work(step, [{"tokens": tokens}], trains=False)


def decoder(mixer: str, settings: Settings) -> CausalLM:
    """Our model of the decode rows."""
    configs = mixer_configs()
    backbone = BackboneConfig(
        d_model=settings.d_model,
        n_layers=LAYERS,
        pattern=[mixer],
        mamba1=configs["mamba1"],  # type: ignore[arg-type]
        mamba2=configs["mamba2"],  # type: ignore[arg-type]
    )
    model = CausalLM(VOCABULARY, backbone)
    halved(model, settings.device)
    return model


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call as a CUDA graph, after three aside that compile and tune what it launches; its results stay in place."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> Any:
        graph.replay()
        return results

    return replay
