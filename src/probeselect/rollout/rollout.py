"""Takes the candidates of all prompts from rung to rung, and yields a `Stage` at every rung.

Knows the order of candidates; does not know why a candidate is kept, nor how a batch is run (batches.py).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from probeselect.backbones.loading import Backbone
from probeselect.backbones.taps import Tap
from probeselect.core.candidates import Candidate
from probeselect.core.stage import Stage
from probeselect.rollout.batches import Batches
from probeselect.rollout.tally import Tally

__all__ = ["Batches", "Stage", "Tally", "rollout"]


def rollout(
    backbone: Backbone,
    candidates: Sequence[Candidate],
    rungs: Sequence[float],
    *,
    keep: Callable[[Stage], Sequence[int]] | None = None,
    taps: Sequence[Tap] = (),
    previews: bool = False,
    finish: bool = True,
    batch_size: int | None = None,
    tally: Tally | None = None,
    progress: Callable[[int, int], None] = lambda done, planned: None,
    say: Callable[[str], None] = lambda note: None,
    **arguments: Any,
) -> Iterator[Stage]:
    """Yield the stage at each rung, then (if `finish`) the finished one.

    Args:
        rungs: increasing fractions of the trajectory.
        keep: asked at every rung, once its stage has been yielded: the places in `stage.candidates` of those that go
            on; the others stop there. None: everybody goes on.
        taps: activations to read at every rung; `X0` is the latent x0-prediction.
        previews: decode the x0-prediction at every rung, with the pipeline's own decoder.
        batch_size: most candidates in one call of the pipeline; None means as many as fit, up to MOST_IN_A_BATCH.
        progress: called with (denoiser rows done, rows planned as far as is known) after every step;
            planned takes it that all who run finish, so it falls at every cut.
        say: called once with every sentence about what is not as planned, when it is found out.
        arguments: handed to every call of the pipeline.

    Raises:
        UsageError: an argument that the pipeline does not take.
        ProbeSelectError: one candidate alone does not fit the memory, or the pipeline fails with it.
    """
    batches = Batches(backbone, candidates, arguments, batch_size, tally or Tally(), progress, say)
    running = list(candidates)
    for rung in rungs:
        stage = batches.to_rung(running, rung, taps, previews)
        yield stage
        if keep is not None:
            running = [running[i] for i in sorted(set(keep(stage)))]
            batches.forget_all_but(running)
        if not running:
            return
    if finish:
        yield batches.to_end(running)
