"""Sheets of a dataset's own pictures: where a scorer chose well and where not, previews and activations over the steps.

Knows what was stored; generates nothing and needs no model.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from probeselect.core.rungs import rung_of
from probeselect.core.score_table import ScorerScores, ScoreTable
from probeselect.data.dataset import Dataset
from probeselect.data.gallery import Gallery
from probeselect.data.table import Table
from probeselect.evaluation.picture import Picture, of_image
from probeselect.evaluation.tables import chosen_places, shown
from probeselect.policies.simulate import CUT

CELL, GAP, LINE = 112, 6, 15  # px
ROWS, MOST_COLUMNS = 8, 10
SHOWN = 3  # prompts whose previews and activations are drawn
BASIS_GROUPS = 64  # groups that a basis of colours is fitted to
INK, FADED, GOOD, BAD, PAPER = (28, 30, 34), (120, 124, 130), (22, 138, 82), (184, 67, 63), (250, 250, 248)


def sheets(dataset: Dataset, groups: Table, table: ScoreTable) -> Iterator[Picture]:
    """Every sheet that the dataset has pictures for, of the scorer that `shown` names.

    groups: those that `table` was made of.
    """
    gallery = dataset.gallery
    name = shown([each.name for each in table.scorers])
    scorer = next(each for each in table.scorers if each.name == name)
    step = scorer.step_near(CUT, table.total_steps)
    places = np.array(chosen_places(scorer.scores[step], table.valid))
    rows = np.arange(len(places))
    best = np.where(table.valid, table.rewards, -np.inf).max(1)
    mean = np.where(table.valid, table.rewards, 0).sum(1) / np.maximum(table.valid.sum(1), 1)
    chosen = np.where(places >= 0, table.rewards[rows, places], np.nan)
    spread = np.where(table.valid.sum(1) > 1, best - mean, np.nan)
    hits = [p for p in np.argsort(-spread, kind="stable") if chosen[p] == best[p] and spread[p] > 0][:ROWS]
    lost = best - chosen
    misses = [p for p in np.argsort(-lost, kind="stable") if lost[p] > 0][:ROWS]
    about = f"{scorer.name} at {rung_of(step, table.total_steps):.0%}, {table.evaluator}"
    for name, title, found, words in (
        ("hits", "Hits", hits, "the most to gain, and the best one chosen"),
        ("misses", "Misses", misses, "the most lost"),
    ):
        sheet = _choices(gallery, groups, table, scorer, step, found)
        if sheet is not None:
            text = f"Prompts with {words} ({about}). Finished pictures by falling score; framed: chosen; bar: the best."
            yield of_image(name, title, text, sheet)
    some = [int(p) for p in np.linspace(0, len(places) - 1, min(SHOWN, len(places))).round()]
    if (sheet := _previews(dataset, gallery, groups, some)) is not None:
        text = "The decoded x0-prediction of one candidate a prompt at every rung; last, the finished picture."
        yield of_image("previews", "What the preview shows", text, sheet)
    yield of_image(
        "activations",
        "What the denoiser knows, by block and step",
        "The first three principal components of the activations as red, green and blue; one basis a block, so colours "
        "can be compared along its row. Last, the finished picture.",
        _activations(dataset, gallery, groups, some),
    )


def _choices(
    gallery: Gallery, groups: Table, table: ScoreTable, scorer: ScorerScores, step: int, prompts: Sequence[int]
) -> Image.Image | None:
    """A row a prompt: its finished pictures by falling score, at most MOST_COLUMNS, the best one always among them."""
    if not prompts:
        return None
    columns = min(MOST_COLUMNS, table.rewards.shape[1])
    sheet = _paper(columns, len(prompts), CELL + 3 * LINE)
    draw = ImageDraw.Draw(sheet)
    for row, p in enumerate(prompts):
        top = GAP + row * (CELL + 3 * LINE + GAP)
        draw.text((GAP, top), _plain(table.prompts[p], 18 * columns), INK, _font(12))
        there = np.flatnonzero(table.valid[p])
        order = there[np.argsort(-scorer.scores[step][p, there], kind="stable")]
        best = int(there[np.argmax(table.rewards[p, there])])
        shown = order[:columns].tolist()
        if best not in shown:
            shown[-1] = best
        for column, i in enumerate(shown):
            left, middle = GAP + column * (CELL + GAP), top + LINE
            _paste(sheet, gallery.finished(groups.prompts[p], int(groups.tensors["seeds"][p, i])), left, middle)
            if column == 0:
                right = table.rewards[p, i] == table.rewards[p, best]
                draw.rectangle(
                    (left - 2, middle - 2, left + CELL + 1, middle + CELL + 1), None, GOOD if right else BAD, 3
                )
            if table.rewards[p, i] == table.rewards[p, best]:
                draw.rectangle((left, middle + CELL + 2, left + CELL, middle + CELL + 4), GOOD)
            text = f"{table.rewards[p, i]:.3g} (said {scorer.scores[step][p, i]:.3g})"
            draw.text((left, middle + CELL + 6), text, INK, _font(11))
    return sheet


def _previews(dataset: Dataset, gallery: Gallery, groups: Table, prompts: Sequence[int]) -> Image.Image | None:
    if not dataset.config.previews:
        return None
    sheet = _paper(len(dataset.rungs) + 1, len(prompts), CELL + 2 * LINE)
    draw = ImageDraw.Draw(sheet)
    for row, p in enumerate(prompts):
        top = GAP + row * (CELL + 2 * LINE + GAP)
        draw.text((GAP, top), _plain(groups.prompts[p], 18 * len(dataset.rungs)), INK, _font(12))
        seed = int(groups.tensors["seeds"][p, 0])
        pictures = [gallery.preview(groups.prompts[p], seed, rung) for rung in dataset.rungs]
        names = [f"{rung:.0%}" for rung in dataset.rungs]
        for column, (picture, name) in enumerate(
            zip([*pictures, gallery.finished(groups.prompts[p], seed)], [*names, "finished"], strict=True)
        ):
            left = GAP + column * (CELL + GAP)
            _paste(sheet, picture, left, top + LINE)
            draw.text((left, top + LINE + CELL), name, FADED, _font(11))
    return sheet


def _activations(dataset: Dataset, gallery: Gallery, groups: Table, prompts: Sequence[int]) -> Image.Image:
    """A row a prompt and block, a column a rung; the blocks of one prompt together."""
    taps, rungs = dataset.config.taps, dataset.rungs
    margin = 190
    sheet = _paper(len(rungs) + 1, len(prompts) * len(taps), CELL, margin, LINE)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate([*(f"{rung:.0%}" for rung in rungs), "finished"]):
        draw.text((margin + GAP + column * (CELL + GAP), 2), name, FADED, _font(11))
    for place, tap in enumerate(taps):
        colours = _Colours(groups, tap, rungs)
        for which, p in enumerate(prompts):
            top = LINE + GAP + (which * len(taps) + place) * (CELL + GAP)
            draw.text((GAP, top), tap, INK, _font(11))
            if place == 0:
                for line, words in enumerate(_lines(groups.prompts[p], 28)):
                    draw.text((GAP, top + LINE * (line + 1)), words, FADED, _font(11))
            for column, rung in enumerate(rungs):
                maps = groups.tensors[f"map/{tap}/{rung:g}"][torch.tensor([p])][0, 0]  # [C, H, W]
                _paste(sheet, colours(maps), margin + GAP + column * (CELL + GAP), top, Image.Resampling.NEAREST)
            if place == 0:
                finished = gallery.finished(groups.prompts[p], int(groups.tensors["seeds"][p, 0]))
                _paste(sheet, finished, margin + GAP + len(rungs) * (CELL + GAP), top)
    return sheet


class _Colours:
    """Maps [C, H, W] of a tap to a picture, by one basis and one range for all rungs and prompts."""

    def __init__(self, groups: Table, tap: str, rungs: Sequence[float]) -> None:
        rows = torch.arange(0, len(groups), max(1, len(groups) // BASIS_GROUPS))[:BASIS_GROUPS]
        parts = [groups.tensors[f"map/{tap}/{rung:g}"][rows][:, 0] for rung in rungs]  # [G, C, H, W] each
        pixels = torch.cat(parts).double().movedim(1, -1).flatten(0, -2).numpy()  # [pixels, C]
        self.mean: NDArray[Any] = pixels.mean(0)
        _, vectors = np.linalg.eigh(np.cov(pixels - self.mean, rowvar=False))
        basis = np.zeros((len(vectors), 3))
        basis[:, : min(3, len(vectors))] = vectors[:, ::-1][:, :3]
        self.basis = basis * np.sign(basis[np.abs(basis).argmax(0), range(3)])  # a vector's sign is free: fix it
        self.low, self.high = np.quantile((pixels - self.mean) @ self.basis, [0.02, 0.98], axis=0)

    def __call__(self, maps: Any) -> Image.Image:
        found = (maps.double().movedim(0, -1).numpy() - self.mean) @ self.basis  # [H, W, 3]
        shown = ((found - self.low) / np.maximum(self.high - self.low, 1e-12)).clip(0, 1)
        return Image.fromarray((255 * shown).round().astype(np.uint8))


def _paper(columns: int, rows: int, height: int, left: int = 0, top: int = 0) -> Image.Image:
    size = (left + GAP + columns * (CELL + GAP), top + GAP + rows * (height + GAP))
    return Image.new("RGB", size, PAPER)


def _paste(
    sheet: Image.Image, picture: Image.Image | None, left: int, top: int, how: Any = Image.Resampling.BICUBIC
) -> None:
    """Paste a picture into a square cell, its aspect ratio kept."""
    if picture is not None:
        scale = CELL / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        sheet.paste(picture.resize(size, how), (left, top))


def _plain(text: str, length: int) -> str:
    """One line; control characters are not drawn."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else line[: length - 3] + "..."


def _lines(text: str, length: int) -> list[str]:
    words, lines = _plain(text, 4 * length).split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > length and lines[-1]:
            lines.append("")
        lines[-1] += word[:length] + " "
    return lines[:5]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
