"""Seconds from the first import to the end of a layer's first forward and backward; run by kernels.py, in a process and
with a Triton cache of its own.

    python benchmarks/first_call.py serpentine mamba2 8192

prints one line of JSON: seconds in all, and of them until everything was imported.
"""

import time

START = time.perf_counter()


def main() -> None:
    """Import, build, run, print."""
    import argparse
    import json

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("impl")
    parser.add_argument("mixer")
    parser.add_argument("length", type=int)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--mamba-ssm")
    arguments = parser.parse_args()

    import torch

    from benchmarks.jobs import Settings
    from benchmarks.kernel_cases import call_layer, make_layer

    settings = Settings(arguments.device, arguments.d_model, arguments.mamba_ssm)
    layer, _ = make_layer(arguments.impl, arguments.mixer, settings)
    imported = time.perf_counter()
    shape = (1, arguments.length, arguments.d_model)
    x = torch.randn(shape, dtype=torch.bfloat16, device=arguments.device, requires_grad=True)
    y = call_layer(layer, x)
    y.backward(torch.randn_like(y))
    assert x.grad is not None
    if not bool(x.grad.isfinite().all()):  # which also waits for the GPU
        raise ValueError("the gradient is not finite")
    print(json.dumps({"seconds": time.perf_counter() - START, "imports": imported - START}))


if __name__ == "__main__":
    main()
