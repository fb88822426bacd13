"""What may differ between the trees, row by row with the reason; and what is never compared."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from same.differences import Difference

# Values of these fields are taken by a clock or a machine. That a field is there is compared all the same.
TAKEN = re.compile(r"seconds.*|.*_seconds|samples_per_second|peak_memory_mib|timing|date|.*_date")
WORDS = (".html", ".md")  # told from the figures in the JSON files beside them


@dataclass(frozen=True)
class Allowed:
    """A difference that is meant. All of what is given must fit; patterns are those of the shell.

    path: the JSON path without indices, such as `decisions.decision`. inside: fields of an object around it, one of
    which holds such a text. renamed: words; the texts must be equal once each old one is replaced by the new one.
    spot: of a picture, the most width and height in px within which all that differs must lie.
    gone: whether it may be gone altogether.
    """

    reason: str
    command: str = "*"
    file: str = "*"
    path: str = "*"
    inside: tuple[tuple[str, str], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    spot: tuple[int, int] | None = None
    gone: bool = False

    def covers(self, command: str, difference: Difference) -> bool:
        return (
            (self.gone or difference.kind != "gone")
            and fnmatchcase(command, self.command)
            and fnmatchcase(difference.file, self.file)
            and fnmatchcase(difference.plain_path, self.path)
            and (not self.inside or any(self._says(difference, *each) for each in self.inside))
            and (not self.renamed or self._same_words(difference))
            and (self.spot is None or self._small(difference.spot, self.spot))
        )

    def _says(self, difference: Difference, name: str, pattern: str) -> bool:
        return any(field == name and fnmatchcase(text, pattern) for field, text in difference.inside)

    def _small(self, spot: tuple[int, int], most: tuple[int, int]) -> bool:
        return spot > (0, 0) and spot[0] <= most[0] and spot[1] <= most[1]

    def _same_words(self, difference: Difference) -> bool:
        before, after = difference.before, difference.after
        if not (isinstance(before, str) and isinstance(after, str)):
            return False
        for old, new in self.renamed:
            before, after = (re.sub(rf"\b{old}(s?)\b", rf"{new}\1", text) for text in (before, after))
        return before == after


ROUNDS = "what was called a wave of candidates is called a round"
RANDOM = "in a dataset `random` draws as the live scorer does"
OF_RANDOM = (("scorer", "random"), ("over", "random"), ("kept_by", "random*"))
ALLOWED = (
    Allowed("the contact sheet tells its seconds", file="*contact_sheet.png", spot=(70, 14)),
    Allowed(ROUNDS, path="*decisions.decision", renamed=(("wave", "round"),)),
    Allowed(ROUNDS, path="*schedule", renamed=(("wave", "round"),)),
    Allowed("decisions of --until say the best score too", command="generate until*", path="*decisions.best"),
    Allowed("a batch holds 32 candidates at most where nothing is said", path="*largest_wave"),
    Allowed(RANDOM, command="evaluate *", file="*report.json", inside=OF_RANDOM),
    Allowed(RANDOM, command="evaluate *", file="*report.json", path="strips.chosen.random"),
    Allowed(RANDOM, command="evaluate dataset", file="report/*.png"),
    Allowed(RANDOM, command="evaluate attention", file="report/*.png"),
)


def reason_for(command: str, difference: Difference, allowed: Sequence[Allowed] = ALLOWED) -> str:
    """Why a difference is meant; "" where it is not."""
    return next((row.reason for row in allowed if row.covers(command, difference)), "")
