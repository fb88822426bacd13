"""Keeps what ordinary use produces, in the form of a collection: a shard a prompt, to train a probe on.

Those who are kept were chosen, so data of them alone would only tell what good candidates look like. A fair share of
the stopped ones is therefore finished too: drawn by a hash of prompt and seed, so that nothing the scorer says decides.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probeselect.backbones.loading import Backbone
from probeselect.backbones.taps import Tap
from probeselect.collect.maker import CollectSettings, ShardMaker, configuration
from probeselect.core.candidates import Candidate
from probeselect.core.errors import UsageError
from probeselect.core.stage import Stage
from probeselect.data.config import NONE_YET
from probeselect.data.dataset import Dataset, append, pin_growing
from probeselect.data.prompts import Prompt
from probeselect.data.sealed import Manifest, read_manifest
from probeselect.data.shards import (
    NOT_FINITE,
    OK,
    ROWS_FILE,
    STOPPED,
    Content,
    encode_image,
    finite,
    half,
    image_name,
    read_rows,
)


class Recorder:
    """Records the groups of one call of SelectiveSampler; make one for every call.

    Args:
        folder: of the dataset; made when missing, appended to otherwise.
        taps: whose maps are kept at every rung of the call.
        settings: `n` and `rungs` must be those of the call.
        arguments: those of the pipeline.
        share: of the candidates that are stopped, how many are finished all the same, from 0 to 1.
        most_bytes: nothing more is recorded once the folder holds so much.

    Raises:
        UsageError: for a share out of range, and for a folder whose groups were made otherwise.
    """

    def __init__(
        self,
        folder: Path,
        backbone: Backbone,
        taps: Sequence[Tap],
        settings: CollectSettings,
        arguments: Mapping[str, Any],
        share: float = 0.1,
        most_bytes: float = 10e9,
    ) -> None:
        if not 0 <= share <= 1:
            raise UsageError(f"record share = {share:g}: must be from 0 to 1")
        if arguments.get("output_type", "pil") != "pil":
            raise UsageError(f"output_type = {arguments['output_type']!r}: recorded pictures must be 'pil'")
        self.taps, self.share, self.settings = tuple(taps), share, settings
        self.maker = ShardMaker(backbone, taps, settings, dict(arguments))
        about = configuration(backbone, taps, settings, arguments, NONE_YET)
        self.dataset: Dataset = pin_growing(folder, about)
        self.known, held = self._there()
        self.full = held >= most_bytes
        self.shards: list[int] = []  # that this call has written
        self.prompts: dict[str, NDArray[np.float16]] = {}
        self.maps: dict[Candidate, dict[str, NDArray[np.float16]]] = {}
        self.bases: dict[str, NDArray[np.float32]] = {}

    def finishes(self, candidates: Sequence[Candidate]) -> set[Candidate]:
        """The candidates that run to the end whatever the scorer says of them; none once the folder is full."""
        return set() if self.full else {c for c in candidates if _place(c) < self.share}

    def note(self, stage: Stage) -> None:
        """Keep the maps of a rung."""
        if self.full:
            return
        for place, tap in enumerate(self.taps):
            kept, self.bases[f"projection/{tap.name}"] = self.maker.stored(place, stage.maps[tap.name])
            for candidate, values in zip(stage.candidates, kept, strict=True):
                self.maps.setdefault(candidate, {})[f"map/{tap.name}/{stage.asked:g}"] = values
        if stage.prompt_embeddings is not None:
            for candidate, values in zip(
                stage.candidates, half(stage.prompt_embeddings.float().cpu().numpy()), strict=True
            ):
                self.prompts.setdefault(candidate.prompt, values)

    def write(self, candidates: Sequence[Candidate], pictures: Mapping[Candidate, Any]) -> None:
        """Append every group that is not there yet; `pictures` of those that were finished."""
        for group in sorted({c.group for c in candidates}) if not self.full else ():
            mine = [c for c in candidates if c.group == group]
            if _id_of(mine) not in self.known:
                self.dataset, index = append(self.dataset, self._content(mine, pictures))
                self.known.add(_id_of(mine))
                self.shards.append(index)
        for candidate in candidates:
            self.maps.pop(candidate, None)

    def _content(self, group: Sequence[Candidate], pictures: Mapping[Candidate, Any]) -> Content:
        shape = (1, len(group))
        names = {name: values for c in group for name, values in self.maps[c].items()}
        whole = np.array([self.maps[c].keys() == names.keys() for c in group])
        tensors: dict[str, NDArray[Any]] = {
            name: np.stack([self.maps[c].get(name, np.zeros_like(like)) for c in group])[None]
            for name, like in names.items()
        }
        good = finite(tensors, shape)[0]
        tensors |= {"seeds": np.array([[c.seed for c in group]]), "valid": (good & whole)[None], **self.bases}
        if group[0].prompt in self.prompts:
            tensors["prompt"] = self.prompts[group[0].prompt][None]
        prompt, kind = Prompt(_id_of(group), group[0].prompt), self.settings.image_format
        images, rows = {}, []
        for i, candidate in enumerate(group):
            picture = pictures.get(candidate)
            if picture is not None:
                images[image_name(prompt.id, i, kind)] = encode_image(picture, kind)
            status = STOPPED if picture is None else OK if good[i] else NOT_FINITE
            size = None if picture is None else picture.size
            rows.append(self.maker.row(prompt, i, candidate.seed, status, size=size))
        return Content(tensors, rows, images)

    def _there(self) -> tuple[set[str], int]:
        """Ids of the groups that are there, and the bytes that they take."""
        ids, held = set(), 0
        for index in self.dataset.done():
            folder = self.dataset.shard(index)
            ids.add(read_rows(folder / ROWS_FILE, ["prompt_id"])["prompt_id"][0].as_py())
            held += sum(entry.bytes for entry in read_manifest(folder, Manifest).files.values())
        return ids, held


def _place(candidate: Candidate) -> float:
    """A candidate's place in [0, 1), by which it is drawn."""
    text = f"{candidate.seed}\0{candidate.prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def _id_of(group: Sequence[Candidate]) -> str:
    """The same prompt with the same seeds is the same group."""
    text = "\0".join([group[0].prompt, *(str(c.seed) for c in group)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
