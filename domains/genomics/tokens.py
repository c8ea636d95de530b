"""The nucleotide alphabet: letters to tokens and back.

The numbering is that of HyenaDNA and Caduceus, so that their checkpoints and ours speak of the same tokens.
"""

import json
from pathlib import Path

import numpy as np

from domains.errors import UserError
from domains.files import atomic_file

VOCABULARY = {
    "[CLS]": 0,
    "[SEP]": 1,
    "[BOS]": 2,
    "[MASK]": 3,
    "[PAD]": 4,
    "[RESERVED]": 5,
    "[UNK]": 6,
    "A": 7,
    "C": 8,
    "G": 9,
    "T": 10,
    "N": 11,
}
VOCAB_SIZE = 16  # 12 used; padded, because matrix products like multiples of 16
BOS, MASK, PAD, UNK = (VOCABULARY[name] for name in ("[BOS]", "[MASK]", "[PAD]", "[UNK]"))
A, C, G, T, N = (VOCABULARY[base] for base in "ACGTN")
BASES = slice(A, T + 1)  # of the logits: the four bases

NUCLEOTIDES = b"ACGTURYSWKMBDHVNacgturyswkmbdhvn"  # IUPAC codes, either case
PROTEIN_ONLY = frozenset("EFILPQXZJO*")  # letters of proteins that no nucleotide code uses

_FOREIGN = 255
_CODES = {letter: VOCABULARY.get(letter, N) for letter in "ACGTRYSWKMBDHVN"} | {"U": T}
LETTER_TO_TOKEN = bytes(_CODES.get(chr(byte).upper(), _FOREIGN) if byte < 128 else _FOREIGN for byte in range(256))
_TOKEN_TO_LETTER = bytes(ord("ACGTN"[t - A]) if A <= t <= N else 0 for t in range(256))
COMPLEMENT = [A + T - t if A <= t <= T else t for t in range(VOCAB_SIZE)]  # of each token
_COMPLEMENT = np.array(COMPLEMENT, dtype=np.uint8)


def find_foreign(sequence: bytes) -> tuple[int, str] | None:
    """Position (0-based) and letter of the first byte that is no IUPAC nucleotide code; None when all are."""
    strangers = sequence.translate(None, NUCLEOTIDES)
    if not strangers:
        return None
    first = strangers[:1]
    return sequence.index(first), first.decode("latin-1")


def describe_foreign(
    position: int, letter: str, remedy: str = "remove it, or write N where the base is unknown"
) -> str:
    """The finding of :func:`find_foreign` in words (position told 1-based), with the remedy; a better one if known."""
    where = f"{letter!r} at base {position + 1:,} is no nucleotide code"
    if letter.upper() in PROTEIN_ONLY:
        return f"{where}; this looks like protein: give the nucleotide sequence instead"
    if letter in "-.~":
        return f"{where}; this looks like an alignment: remove the gaps"
    return f"{where}; {remedy}"


def encode(sequence: bytes | str) -> np.ndarray:
    """Tokens of a nucleotide sequence in either case.

    Returns:
        uint8 array (length,): A, C, G, T as they are, U as T, every other IUPAC code as N.

    Raises:
        UserError: a letter that is no IUPAC nucleotide code.
    """
    data = sequence.encode("latin-1", "replace") if isinstance(sequence, str) else bytes(sequence)
    if foreign := find_foreign(data):
        raise UserError(f"sequence: {describe_foreign(*foreign)}")
    return np.frombuffer(bytearray(data.translate(LETTER_TO_TOKEN)), dtype=np.uint8)


def decode(tokens: np.ndarray) -> str:
    """Letters A, C, G, T, N of an array (length,) of tokens of any integer type.

    Raises:
        ValueError: a token that stands for no letter, such as BOS.
    """
    tokens = np.asarray(tokens)
    if tokens.size and (tokens.min() < A or tokens.max() > N):
        raise ValueError("only the tokens of A, C, G, T and N have a letter")
    return tokens.astype(np.uint8).tobytes().translate(_TOKEN_TO_LETTER).decode("ascii")


def reverse_complement(tokens: np.ndarray) -> np.ndarray:
    """The other strand, read in its own direction, along the last axis; a new array of the same integer type.

    Special tokens and N are their own complements.
    """
    tokens = np.asarray(tokens)
    return _COMPLEMENT[tokens[..., ::-1]].astype(tokens.dtype, copy=False)


def save_tokenizer(path: Path) -> None:
    """Write the vocabulary as JSON to ``path`` (a file, by custom ``tokenizer.json``), atomically."""
    table = {"type": "nucleotide-character", "size": VOCAB_SIZE, "vocabulary": VOCABULARY}
    with atomic_file(path) as file:
        file.write(json.dumps(table, indent=2).encode("ascii") + b"\n")


def check_tokenizer(path: Path) -> None:
    """Make sure that a saved vocabulary is this one.

    Raises:
        UserError: the file is missing, unreadable, or of another vocabulary.
    """
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        found, size = table["vocabulary"], table["size"]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); a model folder needs its tokenizer.json") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is no vocabulary table; train the model again or restore this file") from None
    if found != VOCABULARY or size != VOCAB_SIZE:
        raise UserError(
            f"{path}: the model uses another vocabulary ({_difference(found)}); use a model trained by this version"
        )


def _difference(found: object) -> str:
    if not isinstance(found, dict):
        return "not a table"
    for name, token in VOCABULARY.items():
        if found.get(name) != token:
            return f"{name} is {found.get(name, 'missing')} there and {token} here"
    return f"{len(found)} entries there and {len(VOCABULARY)} here"
