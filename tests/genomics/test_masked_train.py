"""Training on hidden bases: resumed to the bit, saved and loaded, symmetric where it says so."""

import pytest
import torch

from domains.config import TrainerConfig
from domains.errors import UserError
from domains.genomics.data import IGNORE
from domains.genomics.model import build_model, load_model, read_record
from domains.genomics.module import MaskedTask
from domains.genomics.tokens import COMPLEMENT, MASK, VOCAB_SIZE
from domains.genomics.train import make_task, train
from domains.settings import from_dict, to_dict
from mamba_core import BackboneConfig, Mamba2Config, MaskedLM
from tests.genomics.test_train import At, crash, result
from tests.genomics.tiny import masked_config, tiny_config


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_crashed_run_goes_on_to_the_bit(tiny, tmp_path, symmetric):
    config = masked_config(tiny, symmetric=symmetric, max_steps=6)
    train(config, tmp_path / "whole", progress=False)
    with pytest.raises(RuntimeError, match="power"):
        train(config, tmp_path / "run", callbacks=[At(crash, batch=5)], progress=False)
    train(config, tmp_path / "run", resume=True, progress=False)
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_hidden_bases_are_learned(masked_models):
    for folder in masked_models.values():
        record = read_record(folder)
        assert record.config.task.kind == "mlm"
        assert record.metrics["validation/bits_per_base"] < 1.9  # a guess by the shares of the letters: 1.96


def test_a_trained_symmetric_model_is_symmetric_to_the_last_digits(masked_models):
    words = torch.randint(7, 11, (2, 101), generator=torch.Generator().manual_seed(0))
    words[0, ::7] = MASK
    turned = torch.tensor(COMPLEMENT)[words.flip(1)]
    differences = {}
    for symmetric, folder in masked_models.items():
        model = load_model(folder).masked.double()
        with torch.no_grad():
            logits, other = model(words), model(turned)
        differences[symmetric] = float((other.flip(1)[..., COMPLEMENT] - logits).abs().max())
    assert differences[True] < 1e-10
    assert differences[False] > 0.1


def test_a_folder_knows_what_kind_of_model_it_holds(masked_models, tiny_model):
    masked, causal = load_model(masked_models[True]), load_model(tiny_model)
    assert masked.masked.symmetric
    assert causal.causal is causal.model
    with pytest.raises(UserError, match=r"is a masked model; this wants one that predicts the next base"):
        _ = masked.causal
    with pytest.raises(UserError, match=r"is a causal model; this wants one that predicts hidden bases"):
        _ = causal.masked


def test_the_score_counts_hidden_bases_alone():
    torch.manual_seed(0)
    backbone = BackboneConfig(d_model=16, n_layers=1, bidirectional=True, mamba2=Mamba2Config(d_state=8, headdim=8))
    task = MaskedTask(MaskedLM(VOCAB_SIZE, backbone), TrainerConfig())
    inputs = torch.tensor([[7, MASK, 9, 10, MASK, 11]])
    targets = torch.tensor([[IGNORE, 8, IGNORE, IGNORE, 9, IGNORE]])
    weights = torch.tensor([[9, 1, 9, 9, 0.25, 9]])
    log_probs = torch.log_softmax(task.model(inputs).detach()[0, :, 7:11].double(), -1)
    nats = -torch.stack([log_probs[1, 1], log_probs[4, 2]])
    batch = {"inputs": inputs, "targets": targets, "weights": weights}
    total, weight = task.score(batch, training=True)
    assert (total.item(), weight.item()) == (pytest.approx(float(nats[0] + 0.25 * nats[1]), rel=1e-5), 1.25)
    total, weight = task.score(batch, training=False)
    assert (total.item(), weight.item()) == (pytest.approx(float(nats.sum()), rel=1e-5), 2.0)


def test_windows_that_lie_on_several_devices_are_refused(tiny):
    """Even where each mixer could: the other strand's slices lie elsewhere."""
    config = masked_config(tiny, symmetric=True)
    config.backbone.bidirectional = False
    config.trainer.context_parallel = 2
    with pytest.raises(UserError, match=r"trainer.context_parallel=2: a masked model needs windows as a whole"):
        make_task(build_model(config), config.trainer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.bidirectional": False}, "config: backbone: a masked model sees both sides"),
        ({"task.kind": "causal"}, "config: backbone: .*a causal model reads in one direction"),
        ({"task.kind": "causal", "backbone.reverse_complement": True}, "for masked models of DNA alone"),
        ({"task.mask_fraction": 1.5}, r"task.mask_fraction=1.5: must lie between 0 and 1"),
        ({"trainer.segment_length": 16}, r"trainer.segment_length=16: MaskedTask does not train in segments"),
        ({"backbone.pattern": ["s4d"]}, "s4d scans one way alone"),
    ],
)
def test_what_cannot_be_is_refused(tiny, tmp_path, change, message):
    config = masked_config(tiny, symmetric=False)
    for key, value in change.items():
        table, name = key.split(".")
        setattr(getattr(config, table), name, value)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_settings_from_before_there_were_tasks_load(tiny):
    config = tiny_config(tiny)
    values = to_dict(config)
    del values["task"], values["backbone"]["bidirectional"], values["backbone"]["reverse_complement"]
    assert from_dict(type(config), values) == config
