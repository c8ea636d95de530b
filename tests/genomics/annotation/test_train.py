"""Training of annotation: it learns, goes on to the bit, starts from what was pre-trained, and says what is wrong."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from domains.errors import UserError
from domains.folder import read_json
from domains.genomics.annotation.data import Order, Tiling, tile
from domains.genomics.annotation.evaluate import evaluate
from domains.genomics.annotation.pretrained import note
from domains.genomics.config import EvaluateConfig
from domains.genomics.splits import Region
from domains.genomics.train import train
from tests.genomics.annotation.genes import genes_config
from tests.genomics.genomes import bare_store, make_store, random_bases
from tests.genomics.tiny import tiny_config


@pytest.fixture(scope="module")
def pretrained(genes, tmp_path_factory):
    """A short pre-training on the same genome, whose training contigs are the test's too."""
    store, _ = genes
    config = tiny_config(store, max_steps=2)
    config.data.window_warmup, config.data.validation, config.data.test = [], ["c0"], ["c2"]
    return train(config, tmp_path_factory.mktemp("pretrained") / "language", progress=False).model_dir


@pytest.mark.parametrize(("kind", "metric", "least"), [("classify", "auc", 0.9), ("segment", "cds_f1", 0.7)])
def test_it_learns_and_leaves_its_record(genes, classified, segmented, kind, metric, least):
    done = classified if kind == "classify" else segmented
    assert done.metrics[f"validation/{metric}"] > least
    data = read_json(done.model_dir / "data.json")
    assert data["annotation"]["fingerprint"] == genes[1].fingerprint
    assert data["annotation"]["source"] == "genes.gff3"
    if kind == "classify":
        assert [report["part"] for report in data["annotation"]["leakage"]] == ["validation", "test"]
    else:
        assert data["annotation"]["classes"] == ["intergenic", "CDS", "intron"]
    text = (done.model_dir / "config.yaml").read_text()
    assert str(genes[0].path.parent) not in text  # no path travels


@pytest.mark.parametrize("kind", ["classify", "segment"])
def test_a_run_that_was_cut_short_goes_on_to_the_bit(genes, pretrained, tmp_path, kind):
    config = genes_config(*genes, kind, task={"pretrained": str(pretrained)})
    whole = train(config, tmp_path / "whole", progress=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for late in (tmp_path / "cut" / "checkpoints").glob("*8.ckpt"):
        late.unlink()
    resumed = train(config, tmp_path / "cut", resume=True, progress=False)
    first, second = (load_file(done.model_dir / "model.safetensors") for done in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_json(resumed.model_dir / "data.json") == read_json(whole.model_dir / "data.json")


def test_a_pretrained_backbone_comes_with_its_sizes_and_may_be_kept_as_it_is(genes, pretrained, tmp_path):
    wrong = {"backbone": {"d_model": 32}}  # the folder's own sizes count
    frozen = genes_config(*genes, "classify", task={"pretrained": str(pretrained), "freeze": True}, **wrong)
    done = train(frozen, tmp_path / "frozen", progress=False)
    before, after = load_file(pretrained / "model.safetensors"), load_file(done.model_dir / "model.safetensors")
    kept = {name: tensor for name, tensor in before.items() if name != "head.weight"}
    assert all(torch.equal(after[f"encoder.trunk.{name}"], tensor) for name, tensor in kept.items())
    full = train(
        genes_config(*genes, "classify", task={"pretrained": str(pretrained)}), tmp_path / "full", progress=False
    )
    moved = load_file(full.model_dir / "model.safetensors")
    assert not torch.equal(moved["encoder.trunk.embedding.weight"], before["embedding.weight"])
    told = read_json(done.model_dir / "data.json")["pretrained"]
    store = genes[0]
    assert (told["kind"], told["frozen"]) == ("causal", True)
    assert told["trained_on_test"] == store.contig("c4").length  # it read the test contig, and the record says so


def test_of_a_model_pretrained_on_another_file_it_cannot_be_told_what_it_has_read(genes, tmp_path):
    other = tiny_config(make_store(tmp_path, {f"c{i}": random_bases(300, i) for i in range(5)}), max_steps=1)
    other.data.window_warmup = []
    before = train(other, tmp_path / "language", progress=False).model_dir
    config = genes_config(*genes, "classify", task={"pretrained": str(before)})
    done = train(config, tmp_path / "run", progress=False)
    found = evaluate(done.model_dir, *genes, EvaluateConfig(baselines=False), device="cpu", progress=False)
    told = found.to_dict()["pretrained"]
    reason = "cannot be told, because it was pre-trained on another file (made.fa)"
    assert told["trained_on_test"] == reason
    assert note(told).endswith(f"trained on; whether it has read test regions {reason}")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": {"positive": "exon"}}, "no feature of type 'exon'"),
        ({"data": {"annotation": ""}}, "data.annotation is missing"),
        ({"data": {"annotation": "nowhere.gff3"}}, "no such file"),
        ({"task": {"freeze": True}}, "task.freeze=true"),
        ({"task": {"pretrained": "nowhere"}}, "no such model folder"),
        ({"task": {"kind": "label"}}, "task.kind=label: must be one of causal"),
        ({"data": {"window_warmup": [32]}}, "is for pre-training"),
        ({"trainer": {"segment_length": 16}}, "does not train in segments"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(genes, tmp_path, changed, said):
    with pytest.raises(UserError, match=said):
        train(genes_config(*genes, "classify", **changed), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "value"), [("context", 1024), ("positive", "gene"), ("negatives", "all")])
def test_a_segmenter_has_no_settings_of_windows(genes, tmp_path, name, value):
    with pytest.raises(UserError, match=f"data.{name}={value}: is for task=classify; leave it out"):
        train(genes_config(*genes, "segment", data={name: value}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_with_its_own_annotation_alone(genes, tmp_path):
    config = genes_config(*genes, "classify")
    train(config, tmp_path / "run", progress=False)
    other = tmp_path / "other.gff3"
    other.write_text("##gff-version 3\nc0\tx\tCDS\t1\t300\t.\t+\t0\tParent=t\n")
    config.data.annotation = str(other)
    with pytest.raises(UserError, match=r"not the annotation that this run began with \(genes.gff3\)"):
        train(config, tmp_path / "run", resume=True, progress=False)


def test_each_epoch_holds_every_item_once_in_an_order_of_its_own():
    order = Order(10, rows=4, seed=1)
    items = np.concatenate([order.batch(i) for i in range(5)])
    assert sorted(items[:10]) == sorted(items[10:]) == list(range(10))
    assert items[:10].tolist() != items[10:].tolist()
    assert np.array_equal(Order(10, rows=4, seed=1).batch(3), order.batch(3))


@pytest.mark.parametrize(("window", "halo"), [(100, 20), (101, 30), (128, 0), (16, 2), (15, 1), (3, 1), (1, 0)])
def test_tiles_count_every_base_once_keep_their_halo_and_mirror_each_other(window, halo):
    for length in [*range(1, 9 * window), 50 * window, 50 * window + 1]:
        check_tiles(length, window, halo)


def check_tiles(length, window, halo):
    store = bare_store({"a": 7, "c": length})
    tiles = tile([Region("c", 0, length)], store, window, halo)
    counted = np.concatenate([np.arange(one.first, one.last) for one in tiles])
    assert counted.tolist() == list(range(7, 7 + length))
    assert len(tiles) <= 2 + max(0, length - window) / (window - 2 * halo) + 1
    for one, other in zip(tiles, tiles[::-1], strict=True):
        assert 7 <= one.start <= one.first < one.last <= one.stop <= 7 + length
        in_the_middle = one == other and length > window
        assert one.stop - one.start == min(window, length) - ((length - window) % 2 if in_the_middle else 0)
        assert [14 + length - at for at in (other.stop, other.start, other.last, other.first)] == list(one)
        assert one.first - one.start >= halo or one.start == 7
        assert one.stop - one.last >= halo or one.stop == 7 + length
    numbers = [Tiling(7, length, window, halo).number_of(base) for base in range(length)]
    assert numbers == np.repeat(np.arange(len(tiles)), [one.last - one.first for one in tiles]).tolist()
    if length > 2 * window:  # spread evenly
        apart = np.diff([one.start for one in tiles])
        assert apart.max() - apart.min() <= 2
