"""Simulated changes of genes by hand, AUCs against scikit-learn, and the benchmark from end to end."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import variants, variants_report
from benchmarks.variants_report import auc, compare, rank
from domains.genomics.annotation.labels import transcripts
from domains.genomics.annotation.table import read_annotation
from domains.genomics.baselines import MarkovModels
from domains.genomics.splits import Region
from domains.genomics.tokens import decode, encode, reverse_complement
from domains.genomics.variants.coding import CHANGE, MISSENSE, STOP_GAINED, SYNONYMOUS, coding_changes, draw_changes
from tests.genomics.genomes import make_store, random_bases

GENE = "ATGTGGAAATCACTATAA"  # M W K S L stop
INTRON = "GTAAGTTTCTAACTTTTCAG"
EFFECTS = {  # codon: (place, substitute) -> effect, all that are not missense
    "TGG": {(1, "A"): STOP_GAINED, (2, "A"): STOP_GAINED},
    "AAA": {(0, "T"): STOP_GAINED, (2, "G"): SYNONYMOUS},
    "TCA": {(1, "A"): STOP_GAINED, (1, "G"): STOP_GAINED, **{(2, base): SYNONYMOUS for base in "CGT"}},
    "CTA": {(0, "T"): SYNONYMOUS, **{(2, base): SYNONYMOUS for base in "CGT"}},
}


def turned(letters):
    return decode(reverse_complement(encode(letters)))


@pytest.fixture(scope="module")
def genes(tmp_path_factory):
    """The gene in one piece, with a codon split by an intron, and both on the other strand; and genes that are none."""
    folder = tmp_path_factory.mktemp("genes")
    spliced = GENE[:7] + INTRON + GENE[7:]
    pieces = [GENE, spliced, turned(GENE), turned(spliced), "CTG" + GENE[3:], GENE[:-3] + "CAA", "ATGTAA" + GENE[3:]]
    sequence, rows = "GATTC", []
    for i, piece in enumerate(pieces):
        start, reverse = len(sequence), i in (2, 3)
        sequence += piece + "CATTG"
        whole = [(start, start + len(piece))]
        if i in (1, 3):
            first = 7 if i == 1 else len(GENE) - 7
            whole = [(start, start + first), (start + first + len(INTRON), start + len(piece))]
        for part in whole:
            rows.append(f"c\t.\tCDS\t{part[0] + 1}\t{part[1]}\t.\t{'-' if reverse else '+'}\t.\tParent=g{i}")
    (folder / "genes.gff3").write_text("##gff-version 3\n" + "\n".join(rows) + "\n")
    store = make_store(folder, {"c": sequence})
    return store, list(transcripts(read_annotation(folder / "genes.gff3")))


def test_every_change_of_a_gene_has_its_effect_on_both_strands_and_over_introns(genes):
    store, found = genes
    result = coding_changes(store, found)
    assert result.genes == 4
    assert result.dropped == {"no start codon": 1, "no stop codon": 1, "stop codon inside": 1}
    assert len(result.changes) == 4 * 4 * 9
    letters = decode(store.tokens("c"))
    for change in result.changes:
        position, strand = int(change["position"]), int(change["strand"])
        assert decode(np.array([change["ref"]])) == letters[position]
        alt = decode(np.array([change["alt"]]))
        told = alt if strand > 0 else turned(alt)
        codon = GENE[3 * change["codon"] : 3 * change["codon"] + 3]
        own = letters[position] if strand > 0 else turned(letters[position])
        assert codon[change["place"]] == own
        assert change["effect"] == EFFECTS[codon].get((int(change["place"]), told), MISSENSE)
        around = letters[position - 1 : position + 2]
        around = around if strand > 0 else turned(around)
        assert change["context"] == sum("ACGT".index(base) * 4**i for i, base in enumerate(told + around[::-1]))


def test_what_is_drawn_is_balanced_by_gene_and_by_context(genes):
    changes = np.zeros(4000, dtype=CHANGE)
    random = np.random.default_rng(0)
    changes["gene"] = np.sort(random.integers(0, 20, 4000))
    changes["effect"] = random.choice([SYNONYMOUS, MISSENSE, STOP_GAINED], 4000, p=[0.3, 0.6, 0.1])
    changes["context"] = random.integers(0, 8, 4000)
    numbers, by_chance = draw_changes(changes, 5, np.random.default_rng(1))
    assert (np.diff(numbers) > 0).all()
    drawn = changes[numbers]
    assert not (drawn["effect"] == MISSENSE).any()
    assert by_chance[drawn["effect"] == STOP_GAINED].all()
    for effect in (SYNONYMOUS, STOP_GAINED):
        counts = np.bincount(drawn["gene"][by_chance & (drawn["effect"] == effect)], minlength=20)
        assert (counts == 5).all()
    for context in range(8):
        own = drawn["context"] == context
        assert (own & (drawn["effect"] == SYNONYMOUS)).sum() >= (own & (drawn["effect"] == STOP_GAINED)).sum()


def test_auc_is_that_of_scikit_learn_with_ties_and_weights():
    random = np.random.default_rng(0)
    scores, positive = random.integers(0, 12, 400).astype(float), random.random(400) < 0.3
    weights = random.integers(0, 4, 400).astype(float)
    ranked = rank(scores, positive, np.zeros(400, np.int64))
    assert auc(ranked, np.ones(400)) == pytest.approx(roc_auc_score(positive, scores))
    assert auc(ranked, weights) == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights))


def test_within_strata_only_pairs_of_one_stratum_count():
    random = np.random.default_rng(1)
    strata, positive = random.integers(0, 5, 300), random.random(300) < 0.5
    scores = np.round(random.normal(size=300) + positive, 1) + 10 * strata
    total = pairs = 0.0
    for stratum in range(5):
        one, other = (scores[(strata == stratum) & effect] for effect in (positive, ~positive))
        difference = one[:, None] - other[None]
        total += (difference > 0).sum() + (difference == 0).sum() / 2
        pairs += difference.size
    assert auc(rank(scores, positive, strata), np.ones(300)) == pytest.approx(total / pairs)


def test_a_score_that_knows_the_context_alone_is_worth_nothing_within_a_context(monkeypatch):
    monkeypatch.setattr(variants_report, "RESAMPLINGS", 50)
    random = np.random.default_rng(2)
    changes = np.zeros(2000, dtype=CHANGE)
    changes["effect"] = random.choice([SYNONYMOUS, STOP_GAINED], 2000)
    changes["context"] = np.where(
        changes["effect"] == STOP_GAINED, random.integers(0, 6, 2000), random.integers(3, 9, 2000)
    )
    changes["gene"] = np.arange(2000) // 20
    scores = {"context": changes["context"].astype(float), "chance": random.normal(size=2000)}
    scores["effect"] = (changes["effect"] != STOP_GAINED) + 0.4 * random.normal(size=2000)
    rows = {(r["pairs"], r["score"]): r for r in compare(changes, np.ones(2000, dtype=bool), scores, "chance")}
    assert rows["by chance", "context"]["auc"] > 0.8
    assert rows["same change", "context"]["auc"] == 0.5
    assert rows["same change", "effect"]["auc"] > 0.95
    low, high = rows["by chance", "chance"]["interval"]
    assert low < 0.5 < high
    assert rows["by chance", "effect"]["more_interval"][0] > 0.3
    assert "more_interval" not in rows["by chance", "chance"]


def test_markov_ratios_are_those_of_whole_sequences(tmp_path):
    store = make_store(tmp_path, {"a": random_bases(4000, 1), "b": random_bases(60, 2)})
    markov = MarkovModels.fit(store, [Region("a", 0, 4000)], 4, [Region("a", 0, 4000)])
    changes = np.zeros(4, dtype=CHANGE)
    tokens = store.tokens("b")
    changes["contig"], changes["position"] = 1, [0, 2, 30, 59]
    changes["ref"] = tokens[changes["position"]]
    changes["alt"] = (changes["ref"] - 7 + 1) % 4 + 7
    for order in (1, 4):
        found = variants.markov_ratios(markov, variants.places_of(store, changes), order)
        for change, ratio in zip(changes, found, strict=True):
            other = tokens.copy()
            other[change["position"]] = change["alt"]
            bits = [markov.log2_probs(s, order).sum(dtype=np.float64) for s in (other, tokens)]
            bits += [markov.log2_probs(reverse_complement(s), order).sum(dtype=np.float64) for s in (other, tokens)]
            wanted = (bits[0] - bits[1] + bits[2] - bits[3]) / 2 * np.log(2)
            assert ratio == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_from_a_genome_to_a_table(tiny, tiny_model, masked_models, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setattr(variants_report, "RESAMPLINGS", 10)
    letters = decode(tiny.tokens("c4"))
    rows = []
    for start in range(len(letters) - 120):  # whatever can be read as a gene in the test contig
        if letters[start : start + 3] == "ATG":
            codons = [letters[i : i + 3] for i in range(start, len(letters) - 2, 3)]
            stop = next((i for i, codon in enumerate(codons) if codon in ("TAA", "TAG", "TGA")), None)
            if stop and stop > 6 and "N" not in letters[start - 1 : start + 3 * stop + 4]:
                rows.append(f"c4\t.\tCDS\t{start + 1}\t{start + 3 * stop + 3}\t.\t+\t0\tParent=g{start}")
    (tmp_path / "genes.gff3").write_text("##gff-version 3\n" + "\n".join(rows) + "\n")
    fasta = tmp_path / "made.fa"
    fasta.write_text("".join(f">{name}\n{decode(tiny.tokens(name))}\n" for name in tiny.names))
    common = ["--variants", f"{tmp_path}/variants.npz", "--store", str(tiny.path)]
    model = tiny_model if kind == "causal" else masked_models[True]
    variants.main(["prepare", "--fasta", str(fasta), "--annotation", f"{tmp_path}/genes.gff3", "--contigs", "c4",
                   "--stores", str(tmp_path), "--per-gene", "3", "--out", f"{tmp_path}/variants.npz"])  # fmt: skip
    variants.main(["score", *common, "--commit", "0" * 40, "--model", str(model), "--context", "40",
                   "--window", "20", "--stride", "2",
                   "--device", "cpu", "--out", f"{tmp_path}/scores.npz"])  # fmt: skip
    variants.main(["report", *common, "--scores", f"tiny={tmp_path}/scores.npz", "--max-order", "2",
                   "--json", f"{tmp_path}/result.json"])  # fmt: skip
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["commit"] == "0" * 40
    assert result["hardware"]["device"] == "cpu"
    assert 0 < result["models"]["tiny"]["scored"] < result["variants"]["stop_gained"] + result["variants"]["synonymous"]
    shown = {row["score"] for row in result["rows"]}
    assert {"tiny", "Markov 1", "Markov 2", "loss of G or C"} == shown
    assert all(0 <= row["auc"] <= 1 and row["interval"][0] <= row["interval"][1] for row in result["rows"])
    assert result["models"]["tiny"]["kind"] == ("causal" if kind == "causal" else "mlm")
    assert {row["window"] for row in result["windows"]} == ({1, 8, 20} if kind == "causal" else {20})
    assert "| by chance | tiny |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is not the genome of"):
        variants.main(["score", *common[:2], "--store", str(make_store(tmp_path, {"x": "ACGT" * 9}).path),
                       "--model", str(model), "--out", f"{tmp_path}/other.npz"])  # fmt: skip
