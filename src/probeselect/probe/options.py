"""The options of training a probe, written once: command line, Python, and what is saved beside the weights."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from msgspec import Meta

from probeselect.core.errors import UsageError
from probeselect.core.options import Option, check
from probeselect.probe.ranges import Rung, Width

Ranking = Literal["listwise", "listwise-batch", "pairwise", "listnet", "regression"]
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)

Count = Annotated[int, Meta(ge=1)]
Weight = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Inside = Annotated[float, Meta(gt=0, lt=1)]
Positive = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class TrainOptions:
    """How to train a probe: `TrainOptions(epochs=3, taps=("x0",))`. `probeselect train --help` says what each is.

    Raises UsageError that names the option, its value and what would be right.
    """

    evaluators: Annotated[
        tuple[str, ...],
        Option(
            "evaluators to predict, one head each: NAME[=FOLDER],...",
            "Data",
            unset="every evaluator that has scored the dataset",
        ),
    ] = ()
    taps: Annotated[tuple[str, ...], Option("taps to train on", "Data", unset="every tap in the dataset")] = ()
    rungs: Annotated[tuple[Rung, ...], Option("rungs to train on", "Data", unset="every rung in the dataset")] = ()
    val_share: Annotated[Inside, Option("fraction of the prompts that chooses the epoch", "Data")] = 0.1
    test_share: Annotated[Share, Option("fraction of the prompts held out for the final figures", "Data")] = 0.1

    kind: Annotated[
        Literal["auto", "features", "scalar"],
        Option(
            "what a head predicts: the evaluator's features of the finished picture, or the reward itself (scalar); "
            "auto: features where the dataset has them",
            "Probe",
        ),
    ] = "auto"
    width: Annotated[Width, Option("channels of the probe", "Probe")] = 48

    ranking: Annotated[Ranking, Option("ranking loss", "Losses")] = "listwise"
    ranking_weight: Annotated[Weight, Option("weight of the ranking loss", "Losses")] = 0.3
    contrast_weight: Annotated[
        Weight, Option("weight of the contrastive loss, which aligns the probe with the prompt", "Losses")
    ] = 0.02
    distillation_weight: Annotated[Weight, Option("weight of the distance to the evaluator's features", "Losses")] = 1.0
    temperature: Annotated[
        tuple[Positive, Positive],
        Option(
            "temperature of the ranking loss at the start and at the end, in standard deviations of the reward within "
            "a prompt",
            "Losses",
        ),
    ] = (1.0, 0.25)
    margin: Annotated[
        tuple[Weight, Weight],
        Option(
            "difference that two rewards must have to be ranked, at the start and at the end, in standard deviations "
            "of the reward within a prompt",
            "Losses",
        ),
    ] = (0.4, 0.0)

    epochs: Annotated[Count, Option("maximum number of epochs", "Optimisation")] = 10
    patience: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Option("stop after this many epochs without a better val Spearman", "Optimisation", unset="run all epochs"),
    ] = None
    groups_per_batch: Annotated[Count, Option("prompts per batch", "Optimisation")] = 8
    rate: Annotated[Inside, Option("peak learning rate", "Optimisation")] = 2e-3
    warmup: Annotated[Share, Option("fraction of the training in which the learning rate rises", "Optimisation")] = 0.1
    weight_decay: Annotated[Weight, Option("weight decay of AdamW", "Optimisation")] = 0.02
    ema_decay: Annotated[Share, Option("decay of the averaged weights (EMA)", "Optimisation")] = 0.99
    bf16: Annotated[bool, Option("run the encoder in bfloat16", "Optimisation")] = False
    seed: Annotated[
        int, Meta(ge=0, le=2**32 - 1), Option("seed of the initial weights and of the order of batches", "Optimisation")
    ] = 0

    def __post_init__(self) -> None:
        check(self)
        if self.val_share + self.test_share >= 1:
            raise UsageError(
                f"val_share = {self.val_share:g}, test_share = {self.test_share:g}: must be below 1 together, so that "
                "prompts are left to train on"
            )
