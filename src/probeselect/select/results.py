"""What a call of the sampler gives back."""

import base64
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from probeselect.select.contact_sheet import contact_sheet
from probeselect.select.records import CandidateResult, Cost, Decision, PromptResult, RungScore
from probeselect.select.result_file import write_results

__all__ = ["CandidateResult", "Cost", "Decision", "Result", "RungScore"]


@dataclass(frozen=True, repr=False)
class Result(PromptResult):
    """What became of one prompt. `images[i]` belongs to `kept[i]`, best first; `candidates` are in seed order.

    result = sampler("a cat", n=5)
    result.images[0]
    result.save("cats")

    """

    def save(self, folder: str | Path) -> Path:
        """Write result.json, the kept pictures and contact_sheet.png into a folder; returns the folder.

        Raises UsageError for what is no picture (latents).
        """
        write_results([self], Path(folder))
        return Path(folder)

    def contact_sheet(self) -> Any:
        """A PIL image of all candidates: preview and score at each rung, and what became of them."""
        return contact_sheet(self)

    def __repr__(self) -> str:
        prompt = self.prompt if len(self.prompt) <= 40 else self.prompt[:37] + "..."
        seeds = ", ".join(str(candidate.seed) for candidate in self.kept) or "none"
        return (
            f"<Result {prompt!r}: kept seed {seeds} of {len(self.candidates)} candidates, "
            f"{self.cost.denoiser_rows} of {self.cost.denoiser_rows_all} steps>"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the contact sheet and what it cost."""
        out = io.BytesIO()
        self.contact_sheet().save(out, "PNG")
        data = base64.b64encode(out.getvalue()).decode()
        return f'<p>{escape(repr(self)[1:-1])}</p><img src="data:image/png;base64,{data}" alt="{escape(self.prompt)}">'
