"""What no implementation can beat: bytes over copy bandwidth, products over the rate of matrix products.

Each input is read once and each output written once, in bfloat16. A floor is the largest of its three times: bytes /
copy bandwidth, FLOP / bf16 matrix rate, exponentials / rate of the special-function units. Per token, with d channels
(expand x d_model), h heads, state n, Q = 64 tokens a chunk (fewer would waste the matrix units):

    ssd             forward   2 (2d + 2n + h) bytes    4 d n + 2 Q d + 2 Q n FLOP       x, B, C, dt; y
                    backward  2 (3d + 4n + 2h) bytes  10 d n + 4 Q d + 6 Q n FLOP       x, B, C, dt, dy; dx, dB, dC, ddt
    selective_scan  forward   2 (4d + 2n) bytes        d n exponentials                 x, dt, z, B, C; y
                    backward  2 (7d + 4n) bytes        d n exponentials                 and dy; dx, ddt, dz, dB, dC
    conv            forward   2 (2c) bytes             backward  2 (3c) bytes           c = d + 2n channels
    norm            forward   2 (3d) bytes             backward  2 (5d) bytes           y, z; out, and the gradients
    layers          the scan's floor, and the projections' W weights before and after it: 2 W FLOP forward, 4 W
                    backward; convolution and norm count nothing, as they could be fused
    decode          weights once, the state (float32) read and written

fwdbwd is the sum of forward and backward.
"""

from typing import Any

from benchmarks.jobs import EXPAND, HEADDIM, LAYERS, STATE, WIDTH, Job

CHUNK = 64

# mamba_ssm on one H100 80GB (torch 2.11.0+cu130, Triton 3.6.0) with its CUDA extension and causal_conv1d: the project's
# field notes of November 2026, not measured by this benchmark. (case, batch, length) -> forward, forward + backward, ms
PUBLISHED_SOURCE = "field notes of November 2026, one H100 80GB, mamba_ssm with its CUDA extensions"
PUBLISHED: dict[tuple[str, int, int], tuple[float, float]] = {
    ("ssd", 1, 2048): (0.93, 2.78),
    ("ssd", 1, 8192): (0.41, 2.67),
    ("ssd", 1, 65536): (1.46, 6.11),
    ("ssd", 1, 262144): (5.99, 24.56),
    ("ssd", 1, 1048576): (24.0, 98.0),
    ("selective_scan", 1, 2048): (0.09, 0.47),
    ("selective_scan", 1, 8192): (0.38, 1.88),
    ("selective_scan", 1, 65536): (2.97, 14.45),
    ("selective_scan", 1, 262144): (12.05, 59.35),
    ("selective_scan", 1, 1048576): (49.2, 237.0),
    ("mamba1_layer", 1, 2048): (0.30, 1.96),
    ("mamba1_layer", 1, 8192): (0.59, 2.91),
    ("mamba1_layer", 1, 65536): (4.46, 18.94),
    ("mamba1_layer", 1, 262144): (18.1, 78.5),
    ("mamba1_layer", 1, 1048576): (74.5, 317.0),
    ("mamba1_layer", 16, 2048): (2.00, 8.51),
    ("mamba2_layer", 1, 2048): (0.90, 4.31),
    ("mamba2_layer", 1, 8192): (1.39, 6.56),
    ("mamba2_layer", 1, 65536): (3.18, 11.87),
    ("mamba2_layer", 1, 262144): (12.8, 49.2),
    ("mamba2_layer", 16, 2048): (1.83, 9.38),
    ("conv", 1, 65536): (0.24, 0.86),
}
PUBLISHED_MIB = {"ssd": 1669, "selective_scan": 1556, "mamba2_layer": 3841, "mamba1_layer": 3121}  # at 65,536
PUBLISHED_DECODE = {("mamba2", 1): 0.675, ("mamba2", 64): 1.60, ("mamba1", 1): 0.733, ("mamba1", 64): 0.915}  # graph


def published() -> dict[str, Any]:
    """The notes' figures as rows, with where they come from."""
    rows = []
    for (case, batch, length), (forward, both) in PUBLISHED.items():
        mib = PUBLISHED_MIB.get(case) if length == 65536 else None
        rows.append(Job(case, length, batch).row("mamba_ssm", fwd_ms=forward, fwdbwd_ms=both, extra_peak_mib=mib))
    for (mixer, batch), step in PUBLISHED_DECODE.items():
        rows.append(Job("decode", 1, batch, mode="graph", mixer=mixer).row("mamba_ssm", fwd_ms=step))
    return {"source": PUBLISHED_SOURCE, "rows": rows}


def work_per_token(case: str, d_model: int) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Bytes, FLOP of matrix products and exponentials of a token, forward and backward, as the table above has them."""
    d, h = EXPAND * d_model, EXPAND * d_model // HEADDIM
    if case == "ssd":
        n, q = STATE["mamba2"], CHUNK
        forward = (2 * (2 * d + 2 * n + h), 4 * d * n + 2 * q * d + 2 * q * n, 0)
        return forward, (2 * (3 * d + 4 * n + 2 * h), 10 * d * n + 4 * q * d + 6 * q * n, 0)
    if case == "selective_scan":
        n = STATE["mamba1"]
        return (2 * (4 * d + 2 * n), 0, d * n), (2 * (7 * d + 4 * n), 0, d * n)
    if case == "conv":
        return (4 * (d + 2 * STATE["mamba2"]), 0, 0), (6 * (d + 2 * STATE["mamba2"]), 0, 0)
    if case == "norm":
        return (6 * d, 0, 0), (10 * d, 0, 0)
    raise ValueError(f"no floor for {case}")


def projection_weights(mixer: str, d_model: int) -> int:
    """Weights of all projections of one layer."""
    d, n = EXPAND * d_model, STATE[mixer]
    if mixer == "mamba2":
        return d_model * (2 * d + 2 * n + d // HEADDIM) + d * d_model
    rank = -(-d_model // 16)
    return d_model * 2 * d + d * (rank + 2 * n) + rank * d + d * d_model


def decode_bytes(mixer: str, batch: int, d_model: int) -> float:
    """Bytes of one decoding step through LAYERS layers."""
    d, n = EXPAND * d_model, STATE[mixer]
    channels = d + 2 * n if mixer == "mamba2" else d
    return LAYERS * (2 * projection_weights(mixer, d_model) + 2 * 4 * batch * (d * n + (WIDTH - 1) * channels))


def floor_row(job: Job, ceilings: dict[str, float], d_model: int) -> dict[str, Any] | None:
    """The floor of a job in milliseconds, as a row; None where there is none (first_call)."""
    bandwidth, rate = ceilings["copy_bytes_per_s"], ceilings["matmul_flops_per_s"]
    exponentials = ceilings.get("exp_per_s", float("inf"))

    def milliseconds(work: tuple[float, float, float]) -> float:
        return 1e3 * job.batch * job.length * max(work[0] / bandwidth, work[1] / rate, work[2] / exponentials)

    if job.case == "decode":
        assert job.mixer is not None
        return job.row("floor", fwd_ms=round(1e3 * decode_bytes(job.mixer, job.batch, d_model) / bandwidth, 4))
    if job.case == "first_call":
        return None
    layer = job.case.endswith("_layer")
    mixer = job.case.removesuffix("_layer")
    case = {"mamba1": "selective_scan", "mamba2": "ssd"}[mixer] if layer else job.case
    forward, backward = (milliseconds(work) for work in work_per_token(case, d_model))
    if layer:
        products = 2e3 * projection_weights(mixer, d_model) * job.batch * job.length / rate
        forward, backward = forward + products, backward + 2 * products
    return job.row("floor", fwd_ms=round(forward, 4), fwdbwd_ms=round(forward + backward, 4))
