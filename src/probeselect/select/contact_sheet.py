"""One picture of a whole selection: every candidate's preview and score at each rung, and what became of it.

A clip is shown as its first, middle and last frame: below each other where they are wider than high, else side by side.
"""

from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from probeselect.evaluators.pictures import frame_count, frames_of, is_clip, sampled
from probeselect.select.records import CandidateResult, PromptResult

CELL = 192  # px of one picture, or of one frame
FRAMES = 3  # of a clip
GAP = 12
BETWEEN = 2  # px between the frames of a clip
LINE = 20
INK, FADED, CHOSEN, PAPER = (28, 30, 34), (140, 144, 150), (22, 138, 82), (250, 250, 248)
WRONG = (186, 42, 36)


@dataclass(frozen=True)
class _Cell:
    """Size of a picture or frame in px, how many frames a cell has room for, and how they lie."""

    width: int
    height: int
    frames: int
    stacked: bool

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole cell."""
        more = self.frames - 1
        if self.stacked:
            return self.width, self.height + more * (self.height + BETWEEN)
        return self.width + more * (self.width + BETWEEN), self.height

    def place(self, frame: int) -> tuple[int, int]:
        """Return left and top of a frame in the cell."""
        return (0, frame * (self.height + BETWEEN)) if self.stacked else (frame * (self.width + BETWEEN), 0)


def contact_sheet(result: PromptResult) -> Image.Image:
    """Columns: the candidates in seed order. Rows: the preview at each rung, then the finished picture."""
    rows = max(len(candidate.scores) for candidate in result.candidates) + 1
    pictures = _pictures(result)
    cell = _cell_of(pictures)
    width, height = cell.size
    columns = len(result.candidates)
    title = _wrap(result.prompt, max(28, columns * (width + GAP) // 9))
    top = GAP + LINE * (len(title) + 1) + GAP
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), top + rows * (height + 2 * LINE) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(title):
        draw.text((GAP, GAP + i * LINE), line, INK, _font(16))
    draw.text((GAP, GAP + len(title) * LINE), _summary(result, pictures), FADED, _font(13))
    for column, candidate in enumerate(result.candidates):
        left = GAP + column * (width + GAP)
        for row in range(rows):
            corner = (left, top + row * (height + 2 * LINE))
            _draw_cell(
                sheet, draw, cell, corner, candidate, row, best=bool(result.kept) and candidate is result.kept[0]
            )
    return sheet


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    cell: _Cell,
    corner: tuple[int, int],
    candidate: CandidateResult,
    row: int,
    best: bool,
) -> None:
    (left, top), (width, height) = corner, cell.size
    if row < len(candidate.scores):
        score = candidate.scores[row]
        went_on = candidate.kept or row + 1 < len(candidate.scores)
        _paste(sheet, score.preview, cell, corner, faded=not went_on)
        text = f"seed {candidate.seed}   {score.score:.3f} at {score.rung:.0%}"
        draw.text((left, top + height + 2), text, INK if went_on else FADED, _font(13))
        return
    flags = ", ".join(candidate.flags)
    if candidate.image is None:
        if row == len(candidate.scores):
            draw.text((left, top + 2), f"stopped at step {candidate.completed_steps}", FADED, _font(13))
            draw.text((left, top + 2 + LINE), flags, WRONG, _font(13))
        return
    _paste(sheet, candidate.image, cell, corner, faded=not candidate.kept)
    fate, colour = ("kept", CHOSEN if best else INK) if candidate.kept else ("finished, not kept", FADED)
    if candidate.kept:
        draw.rectangle((left - 3, top - 3, left + width + 2, top + height + 2), outline=colour, width=3)
    rewards = "  ".join(f"{name} {value:.3f}" for name, value in candidate.rewards.items())
    draw.text((left, top + height + 4), fate + (f"   {rewards}" if rewards else ""), colour, _font(13))
    draw.text((left, top + height + 2 + LINE), flags, WRONG, _font(13))


def _paste(sheet: Image.Image, picture: Any, cell: _Cell, corner: tuple[int, int], faded: bool) -> None:
    if picture is None:
        return
    for i, frame in enumerate(frames_of(picture, cell.frames)):
        shown = frame.convert("RGB").resize((cell.width, cell.height), Image.Resampling.BICUBIC)
        if faded:
            shown = Image.blend(shown, Image.new("RGB", shown.size, PAPER), 0.55)
        left, top = cell.place(i)
        sheet.paste(shown, (corner[0] + left, corner[1] + top))


def _pictures(result: PromptResult) -> list[Any]:
    """All that is to be shown: finished pictures first, then previews."""
    finished = [candidate.image for candidate in result.candidates]
    previews = [score.preview for candidate in result.candidates for score in candidate.scores]
    return [picture for picture in [*finished, *previews] if picture is not None]


def _cell_of(pictures: list[Any]) -> _Cell:
    """A cell with the aspect ratio of the first picture; the longer side of a picture or frame is CELL."""
    if not pictures:
        return _Cell(CELL, CELL, 1, True)
    first = frames_of(pictures[0], 1)[0]
    scale = CELL / max(first.size)
    width, height = (max(1, round(side * scale)) for side in first.size)
    most = max(len(sampled(frame_count(picture), FRAMES)) for picture in pictures)
    return _Cell(width, height, most, stacked=width >= height)


def _summary(result: PromptResult, pictures: list[Any]) -> str:
    cost = result.cost
    text = (
        f"{len(result.kept)} of {len(result.candidates)} kept, {cost.denoiser_rows} of {cost.denoiser_rows_all} "
        f"denoiser rows ({cost.ratio:.2f}), {cost.seconds:.1f} s"
    )
    if not pictures or not is_clip(pictures[0]):
        return text
    count = frame_count(pictures[0])
    return f"{text}, frames {', '.join(str(i + 1) for i in sampled(count, FRAMES))} of {count}"


def _wrap(text: str, length: int) -> list[str]:
    """At most three lines; control characters are not drawn."""
    words = "".join(c if c.isprintable() else " " for c in text).split()
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) >= length:
            lines.append("")
        lines[-1] += word[:length] + " "
    return lines if len(lines) <= 3 else [*lines[:2], lines[2][: length - 3] + "..."]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
