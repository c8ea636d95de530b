"""The choice of path: one place, forced by an argument, logged once."""

import logging

import pytest
import torch

from mamba_core.ops import paths


def test_a_path_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    paths._announce.cache_clear()
    x = torch.zeros(1)
    with caplog.at_level(logging.INFO, "mamba_core"):
        chosen = [paths.choose_path("ssd", x), paths.choose_path("ssd", x), paths.choose_path("ssd", x, "reference")]
        assert paths.choose_path("conv_step", x, otherwise="reference") == "reference"
    assert chosen == ["chunked", "chunked", "reference"]
    assert caplog.messages == [
        "ssd on cpu runs the chunked path",
        "ssd on cpu runs the reference path",
        "conv_step on cpu runs the reference path",
    ]


def test_a_path_that_is_none_or_cannot_run_here() -> None:
    with pytest.raises(ValueError, match="unknown path 'quick'; choose one of reference, chunked, triton"):
        paths.choose_path("ssd", torch.zeros(1), "quick")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown path 'chunked'; choose one of reference, triton"):
        paths.choose_path("conv_step", torch.zeros(1), "chunked", otherwise="reference")
    with pytest.raises(ValueError, match="works in float32, and these are float64; take 'reference' or 'chunked'"):
        paths.choose_path("ssd", torch.zeros(1, dtype=torch.float64), "triton")
