import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.errors import UserError
from domains.genomics import tokens as tk


def test_vocabulary_is_that_of_hyenadna_and_caduceus():
    names = ["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N"]
    assert list(tk.VOCABULARY) == names
    assert list(tk.VOCABULARY.values()) == list(range(12))
    assert [tk.BOS, tk.MASK, tk.PAD, tk.UNK, tk.N] == [2, 3, 4, 6, 11]
    assert list(range(tk.VOCAB_SIZE))[tk.BASES] == [tk.A, tk.C, tk.G, tk.T] == [7, 8, 9, 10]
    assert tk.VOCAB_SIZE == 16


def test_encode_takes_both_cases_rna_and_ambiguity_codes():
    assert tk.encode("ACGTacgt").tolist() == [7, 8, 9, 10] * 2
    assert tk.encode(b"Uu").tolist() == [10, 10]
    assert set(tk.encode("RYSWKMBDHVNryswkmbdhvn").tolist()) == {tk.N}
    assert tk.encode("").tolist() == []


def test_encode_gives_a_writable_uint8_array():
    tokens = tk.encode("ACGT")
    tokens[0] = tk.N
    assert tokens.dtype == np.uint8


@pytest.mark.parametrize("letter", sorted({chr(i) for i in range(256)} - set(tk.NUCLEOTIDES.decode())))
def test_encode_refuses_every_other_letter(letter):
    with pytest.raises(UserError, match="at base 4 is no nucleotide code") as caught:
        tk.encode("ACG" + letter)
    assert "\n" not in str(caught.value)


def test_encode_tells_protein_from_an_alignment():
    with pytest.raises(UserError, match="looks like protein"):
        tk.encode("MKVLE")
    with pytest.raises(UserError, match="remove the gaps"):
        tk.encode("AC-GT")


@given(st.text("ACGTN"))
def test_decode_undoes_encode(sequence):
    assert tk.decode(tk.encode(sequence)) == sequence
    assert tk.decode(tk.encode(sequence.lower()).astype(np.int64)) == sequence


@pytest.mark.parametrize("token", [tk.BOS, tk.PAD, 12, 255])
def test_decode_refuses_what_has_no_letter(token):
    with pytest.raises(ValueError, match="have a letter"):
        tk.decode(np.array([tk.A, token]))


@given(st.text("ACGTN"))
def test_reverse_complement_pairs_bases_and_undoes_itself(sequence):
    pairs = dict(zip("ACGTN", "TGCAN", strict=True))
    expected = "".join(pairs[base] for base in reversed(sequence))
    other = tk.reverse_complement(tk.encode(sequence))
    assert tk.decode(other) == expected
    assert np.array_equal(tk.reverse_complement(other), tk.encode(sequence))


def test_reverse_complement_works_on_rows_and_keeps_dtype_and_special_tokens():
    rows = np.array([[7, 8, 2], [11, 10, 4]], dtype=np.int64)
    other = tk.reverse_complement(rows)
    assert other.tolist() == [[2, 9, 10], [4, 7, 11]]
    assert other.dtype == np.int64


def test_saved_vocabulary_is_known_again(tmp_path):
    path = tmp_path / "tokenizer.json"
    tk.save_tokenizer(path)
    tk.check_tokenizer(path)
    assert json.loads(path.read_text())["vocabulary"]["A"] == 7
    assert list(tmp_path.iterdir()) == [path]


def test_another_vocabulary_is_refused_by_what_differs(tmp_path):
    path = tmp_path / "tokenizer.json"
    table = {"size": 16, "vocabulary": {**tk.VOCABULARY, "A": 0}}
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"tokenizer\.json: .*another vocabulary .*A is 0 there and 7 here"):
        tk.check_tokenizer(path)
    path.write_text(json.dumps({"size": 4, "vocabulary": tk.VOCABULARY}))
    with pytest.raises(UserError, match="another vocabulary"):
        tk.check_tokenizer(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"vocabulary": 3, "size": 16}'])
def test_a_broken_vocabulary_file_is_refused(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json: "):
        tk.check_tokenizer(path)


def test_a_missing_vocabulary_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        tk.check_tokenizer(tmp_path / "tokenizer.json")
