"""One picture of a whole selection: every candidate's preview and score at each rung, and what became of it."""

from PIL import Image, ImageDraw, ImageFont

from probeselect.sampling.results import CandidateResult, Result

CELL = 192  # px of one picture
GAP = 12
LINE = 20
INK, FADED, CHOSEN, PAPER = (28, 30, 34), (140, 144, 150), (22, 138, 82), (250, 250, 248)


def contact_sheet(result: Result) -> Image.Image:
    """Columns: the candidates in seed order. Rows: the preview at each rung, then the finished picture."""
    rows = max(len(candidate.scores) for candidate in result.candidates) + 1
    height, width = _cell_size(result)
    columns = len(result.candidates)
    title = _wrap(result.prompt, max(28, columns * (width + GAP) // 9))
    top = GAP + LINE * (len(title) + 1) + GAP
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), top + rows * (height + 2 * LINE) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(title):
        draw.text((GAP, GAP + i * LINE), line, INK, _font(16))
    draw.text((GAP, GAP + len(title) * LINE), _summary(result), FADED, _font(13))
    for column, candidate in enumerate(result.candidates):
        left = GAP + column * (width + GAP)
        for row in range(rows):
            box = (left, top + row * (height + 2 * LINE), width, height)
            _draw_cell(sheet, draw, box, candidate, row, best=bool(result.kept) and candidate is result.kept[0])
    return sheet


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    candidate: CandidateResult,
    row: int,
    best: bool,
) -> None:
    left, top, width, height = box
    if row < len(candidate.scores):
        score = candidate.scores[row]
        went_on = candidate.kept or row + 1 < len(candidate.scores)
        _paste(sheet, score.preview, box, faded=not went_on)
        text = f"seed {candidate.seed}   {score.score:.3f} at {score.rung:.0%}"
        draw.text((left, top + height + 2), text, INK if went_on else FADED, _font(13))
        return
    if candidate.image is None:
        if row == len(candidate.scores):
            draw.text((left, top + 2), f"stopped at step {candidate.completed_steps}", FADED, _font(13))
        return
    _paste(sheet, candidate.image, box, faded=not candidate.kept)
    fate, colour = ("kept", CHOSEN if best else INK) if candidate.kept else ("finished, not kept", FADED)
    if candidate.kept:
        draw.rectangle((left - 3, top - 3, left + width + 2, top + height + 2), outline=colour, width=3)
    rewards = "  ".join(f"{name} {value:.3f}" for name, value in candidate.rewards.items())
    draw.text((left, top + height + 4), fate + (f"   {rewards}" if rewards else ""), colour, _font(13))


def _paste(sheet: Image.Image, picture: Image.Image | None, box: tuple[int, int, int, int], faded: bool) -> None:
    left, top, width, height = box
    if picture is None:
        return
    shown = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    if faded:
        shown = Image.blend(shown, Image.new("RGB", shown.size, PAPER), 0.55)
    sheet.paste(shown, (left, top))


def _cell_size(result: Result) -> tuple[int, int]:
    """Height and width of a cell: the pictures' aspect ratio, the longer side CELL."""
    picture = next((c.image for c in result.candidates if c.image is not None), None)
    ratio = picture.width / picture.height if isinstance(picture, Image.Image) else 1.0
    return (CELL, max(1, round(CELL * ratio))) if ratio < 1 else (max(1, round(CELL / ratio)), CELL)


def _summary(result: Result) -> str:
    cost = result.cost
    return (
        f"{len(result.kept)} of {len(result.candidates)} kept, {cost.denoiser_rows} of {cost.denoiser_rows_all} "
        f"denoiser rows ({cost.ratio:.2f}), {cost.seconds:.1f} s"
    )


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
