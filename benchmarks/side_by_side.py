"""Processes side by side, one a GPU."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_BETWEEN_LOOKS = 0.5  # seconds


def environment(gpu: int) -> dict[str, str]:
    """That of a process which sees one GPU alone: number ``gpu`` of those that this process sees."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    number = seen[gpu] if gpu < len(seen) and seen[gpu] else str(gpu)
    return os.environ | {"CUDA_VISIBLE_DEVICES": number}


def run(commands: Mapping[str, Sequence[str]], gpus: int, logs: Path, look: Callable[[], None]) -> None:
    """Run commands in their order, the next when a GPU is free.

    Args:
        commands: name -> command line.
        gpus: how many there are.
        logs: folder for what each says, ``<name>.log``.
        look: called again and again while they are at work, and when all have ended.

    Raises:
        SystemExit: some failed; all others have ended by then. The message holds what each of them said last.
    """
    waiting, free, failed = list(commands), list(range(gpus)), []
    running: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or running:
            while waiting and free:
                name, gpu = waiting.pop(0), free.pop(0)
                with (logs / f"{name}.log").open("w") as log:
                    process = subprocess.Popen(commands[name], stdout=log, stderr=log, env=environment(gpu))
                running[name] = gpu, process
            for name, (gpu, process) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    free.append(gpu)
                    failed += [name] if process.returncode else []
            look()
            if running:
                time.sleep(_BETWEEN_LOOKS)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    if failed:
        last = {name: " | ".join((logs / f"{name}.log").read_text().splitlines()[-3:]) for name in failed}
        raise SystemExit("\n".join(f"{name} failed: {said}" for name, said in last.items()))
