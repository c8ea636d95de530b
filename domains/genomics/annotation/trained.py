"""A trained model of annotation, read from its model folder, and what it says of windows and of bases."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from domains.errors import UserError
from domains.folder import read_json
from domains.genomics.annotation.data import Tile, span
from domains.genomics.annotation.labels import SITES
from domains.genomics.annotation.models import Annotator, Segmenter, WindowClassifier
from domains.genomics.annotation.pretrained import KINDS
from domains.genomics.annotation.table import FeatureTable
from domains.genomics.annotation.train import build_annotator
from domains.genomics.annotation.windows import read_spans
from domains.genomics.model import ModelRecord, read_record
from domains.genomics.store import TOKEN_BITS, GenomeStore
from domains.hardware import full_precision
from domains.model_folder import CONFIG, DATA, load_weights

_ROW_BASES = 1 << 18  # bases that go through a model at once, on a GPU
_ROW_BASES_CPU = 1 << 15


@dataclass(frozen=True)
class AnnotatorRecord(ModelRecord):
    """What is known about a trained model of annotation.

    Attributes:
        annotation: what data.json says of the annotation: its source and fingerprint, the classes of bases, or the
            labelled windows and what they share with other parts.
        pretrained: what data.json says of the model that it started from; empty for none.
    """

    annotation: dict[str, Any]
    pretrained: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """Of bases, in the order of the logits; none for a classifier of windows."""
        return list(self.annotation.get("classes", []))

    def check_annotation(self, table: FeatureTable) -> None:
        """A UserError when ``table`` is not the annotation that the model learned from."""
        if table.fingerprint != self.annotation["fingerprint"]:
            raise UserError(
                f"{table.source}: is not the annotation that {self.path} learned from ({self.annotation['source']})"
            )


@dataclass(frozen=True)
class LoadedAnnotator(AnnotatorRecord):
    """A trained model of annotation and what is known about it.

    Attributes:
        model: in evaluation mode.
        hash: sha256 of model.safetensors, hexadecimal.
    """

    model: Annotator
    hash: str


def read_annotator(folder: Path | str) -> AnnotatorRecord:
    """Read all of a model folder but the weights.

    Raises:
        UserError: it is incomplete, damaged, or of a model of another kind.
    """
    record = read_record(folder)
    kind = record.config.task.kind
    if kind not in KINDS:
        raise UserError(f"{folder}: is a model of task={kind}; this wants one of {' or '.join(KINDS)}")
    data = read_json(record.path / DATA)
    try:
        annotation, pretrained = dict(data["annotation"]), dict(data.get("pretrained", {}))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{record.path / DATA}: says nothing of an annotation; restore the file") from None
    return AnnotatorRecord(**vars(record), annotation=annotation, pretrained=pretrained)


def load_annotator(folder: Path | str, device: str = "cpu") -> LoadedAnnotator:
    """Read a model folder, its weights on ``device``; a UserError as of :func:`read_annotator`, or when they misfit."""
    record = read_annotator(folder)
    model = build_annotator(record.config, len(record.classes), str(record.path / CONFIG))
    sha256 = load_weights(record.path, model)
    return LoadedAnnotator(**vars(record), model=model.to(device).eval(), hash=sha256)


def window_probabilities(
    loaded: LoadedAnnotator, store: GenomeStore, starts: np.ndarray, *, progress: bool = False
) -> np.ndarray:
    """Probability of the class for windows that begin at these positions of ``store.raw``, float32 (n,)."""
    assert isinstance(loaded.model, WindowClassifier)
    data = loaded.config.data
    length, device = span(data), next(loaded.model.parameters()).device
    rows = windows_a_call(loaded)
    found = [np.zeros(0, np.float32)]
    with torch.inference_mode(), full_precision(), _bar(len(starts) * length, progress) as bar:
        for first in range(0, len(starts), rows):
            part = starts[first : first + rows]
            tokens = read_spans(store, part, length, (length - data.window) // 2)
            logits = loaded.model(torch.from_numpy(tokens.astype(np.int64)).to(device))
            found.append(torch.sigmoid(logits).float().cpu().numpy())
            bar.update(len(part) * length)
    return np.concatenate(found)


def base_probabilities(
    loaded: LoadedAnnotator, store: GenomeStore, tiles: Sequence[Tile], *, progress: bool = False
) -> Iterator[tuple[Tile, np.ndarray, np.ndarray]]:
    """What the model says of the bases of tiles that count, tile by tile, equal lengths side by side.

    Yields:
        the tile, probabilities of the classes (bases, classes) and of each kind of site (bases, sites), both float32.
    """
    assert isinstance(loaded.model, Segmenter)
    device = next(loaded.model.parameters()).device
    with _bar(sum(one.stop - one.start for one in tiles), progress) as bar:
        for batch in _alike(tiles, _bases(device)):
            tokens = np.stack([store.raw[one.start : one.stop] & np.uint8(TOKEN_BITS) for one in batch])
            with torch.inference_mode(), full_precision():
                said = loaded.model(torch.from_numpy(tokens.astype(np.int64)).to(device))
                classes = torch.softmax(said.classes, -1).float().cpu().numpy()
                sites = torch.sigmoid(said.sites).float().cpu().numpy()
            for one, of_classes, of_sites in zip(batch, classes, sites, strict=True):
                inside = slice(one.first - one.start, one.last - one.start)
                yield one, of_classes[inside], of_sites[inside]
            bar.update(tokens.size)


@torch.inference_mode()
def annotate_sequence(loaded: LoadedAnnotator, tokens: np.ndarray) -> dict[str, float | list[float]]:
    """What a model says of one sequence in memory, uint8 (l,).

    Returns:
        the ``probability`` of the window in the middle; or of a segmenter, for each class and kind of site,
        the probabilities of the bases.

    Raises:
        UserError: the sequence is shorter than the window.
    """
    model = loaded.model
    given = torch.from_numpy(tokens.astype(np.int64))[None].to(next(model.parameters()).device)
    if isinstance(model, WindowClassifier):
        if len(tokens) < model.window:
            raise UserError(f"a sequence of {len(tokens)} bases is shorter than the model's window of {model.window}")
        return {"probability": float(torch.sigmoid(model(given))[0])}
    said = model(given)
    columns = [*torch.softmax(said.classes[0], -1).T.tolist(), *torch.sigmoid(said.sites[0]).T.tolist()]
    return dict(zip([*loaded.classes, *SITES], columns, strict=True))


def windows_a_call(loaded: LoadedAnnotator) -> int:
    """How many windows, or whole tiles, go through a model at once."""
    data = loaded.config.data
    length = span(data) if isinstance(loaded.model, WindowClassifier) else data.window
    return max(1, _bases(next(loaded.model.parameters()).device) // length)


def halo_of(window: int) -> int:
    """Least bases at either edge of a window whose answers are taken from the window beside it: an eighth of it."""
    return window // 8


def _alike(tiles: Sequence[Tile], bases: int) -> Iterator[list[Tile]]:
    """The tiles in order, as many of one length at a time as make up ``bases``; at least one."""
    batch: list[Tile] = []
    for one in tiles:
        length = one.stop - one.start
        if batch and (length != batch[0].stop - batch[0].start or (len(batch) + 1) * length > bases):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _bases(device: torch.device) -> int:
    return _ROW_BASES if device.type == "cuda" else _ROW_BASES_CPU


def _bar(total: int, progress: bool) -> tqdm:
    return tqdm(total=total, desc="model", unit="b", unit_scale=True, disable=not progress, leave=False)
