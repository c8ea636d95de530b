"""Mu-law levels."""

import numpy as np
import pytest
import torch
from torchaudio.functional import mu_law_decoding, mu_law_encoding

from domains.audio.tokens import CENTRES, EDGES, LEVELS, SILENCE, compress, decode, encode, expand


def test_levels_are_those_of_torchaudio() -> None:
    x = np.concatenate([np.linspace(-1, 1, 20001), [0.0, 2.0, -2.0]]).astype(np.float32)
    theirs = mu_law_encoding(torch.from_numpy(x.clip(-1, 1)), LEVELS).numpy()
    assert np.mean(encode(x) != theirs) < 1e-3  # at edges, where rounding decides
    assert np.abs(encode(x).astype(int) - theirs).max() <= 1
    np.testing.assert_allclose(decode(np.arange(256)), mu_law_decoding(torch.arange(256), 256).numpy(), atol=1e-6)


def test_decoding_undoes_encoding() -> None:
    levels = np.arange(LEVELS, dtype=np.uint8)
    assert np.array_equal(encode(decode(levels)), levels)
    assert encode(np.zeros(1))[0] == SILENCE
    assert encode(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_edges_part_levels() -> None:
    for level in (0, 1, 100, 127, 128, 200, 254):
        edge = expand(EDGES[level + 1])
        near = 1e-5 * max(abs(edge), 1e-3)
        assert encode(np.array([edge - near, edge + near])).tolist() == [level, level + 1]
    np.testing.assert_allclose(compress(expand(CENTRES)), CENTRES, atol=1e-12)
    assert np.isinf(EDGES[[0, -1]]).all()
    assert compress(1.0) == pytest.approx(1.0)
