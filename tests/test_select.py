"""Selective generation: who is kept, in which order, and what it cost."""

import pytest
import torch
from tiny import tiny_sd

from probeselect.backbones.loading import load_backbone
from probeselect.backbones.taps import Tap
from probeselect.core.errors import UsageError
from probeselect.select.sampler import SelectiveSampler

ARGUMENTS = {"num_inference_steps": 10, "height": 16, "width": 16, "output_type": "pt"}


class PrefersSeeds:
    """A scorer that knows its favourites, best first."""

    name, previews = "favourites", False
    taps: tuple[Tap, ...] = ()

    def __init__(self, *favourites: int) -> None:
        self.favourites = favourites

    def __call__(self, stage):
        rank = {seed: -i for i, seed in enumerate(self.favourites)}
        return torch.tensor([float(rank.get(c.seed, -100)) for c in stage.candidates])


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(tiny_sd())


def test_the_best_are_kept_best_first_and_candidates_stay_in_seed_order(backbone):
    result = SelectiveSampler(backbone, PrefersSeeds(7, 5))("a cat", n=5, k=2, rungs=[0.2], seed=4, **ARGUMENTS)
    assert [c.seed for c in result.kept] == [7, 5]
    assert [c.seed for c in result.candidates] == [4, 5, 6, 7, 8]
    assert [c.completed_steps for c in result.candidates] == [2, 10, 2, 10, 2]
    assert all((c.image is not None) == c.kept for c in result.candidates)
    assert result.images[0] is result.kept[0].image


def test_five_to_one_at_a_fifth_costs_36_percent(backbone):
    result = SelectiveSampler(backbone, "random")("a cat", n=5, k=1, rungs=[0.2], **ARGUMENTS)
    assert (result.cost.denoiser_rows, result.cost.denoiser_rows_all) == (18, 50)
    assert result.cost.ratio == pytest.approx(0.36)


def test_the_kept_picture_is_the_stock_pipelines(backbone):
    result = SelectiveSampler(backbone, PrefersSeeds(2), batch_size=2)("a cat", n=4, k=1, rungs=[0.2, 0.5], **ARGUMENTS)
    generator = torch.Generator("cpu").manual_seed(2)
    alone = backbone.pipe("a cat", generator=generator, **ARGUMENTS).images[0]
    assert torch.allclose(result.images[0], alone, atol=1e-5)


class Twins:
    """Candidates 0 and 1 are alike and the best, 2 is unlike them."""

    name, previews, taps = "twins", False, ()

    def __call__(self, stage):
        (name,) = stage.maps
        pattern = torch.tensor([1.0, 0.9, -1.0])[:, None, None, None]
        stage.maps[name] = pattern * torch.ones_like(stage.maps[name])
        return torch.tensor([3.0, 2.0, 1.0])


def test_the_kept_may_be_asked_to_differ(backbone):
    sampler = SelectiveSampler(backbone, Twins())
    given = {"n": 3, "k": 2, "rungs": [0.2], **ARGUMENTS}
    result = sampler("a cat", diversity=0.6, **given)
    assert [c.seed for c in result.kept] == [0, 2] and result.cost.denoiser_rows == 3 * 2 + 2 * 8
    plain = SelectiveSampler(backbone, PrefersSeeds(0, 1))("a cat", **given)
    assert [c.seed for c in plain.kept] == [0, 1]
    with pytest.raises(UsageError, match="diversity = 2"):
        sampler("a cat", diversity=2.0, **given)


def test_prompts_do_not_compete(backbone):
    results = SelectiveSampler(backbone, PrefersSeeds(1))(["a", "b", "a"], n=3, k=1, rungs=[0.2], **ARGUMENTS)
    assert [r.prompt for r in results] == ["a", "b", "a"]
    assert [[c.seed for c in r.kept] for r in results] == [[1], [1], [1]]
    assert sum(r.cost.denoiser_rows for r in results) == 9 * 2 + 3 * 8


def test_halving_over_two_rungs(backbone):
    sampler = SelectiveSampler(backbone, PrefersSeeds(3, 0, 1, 2))
    result = sampler("a", n=4, k=1, rungs=[0.2, 0.5], policy="halving", **ARGUMENTS)
    assert [c.completed_steps for c in result.candidates] == [5, 2, 2, 10]
    assert [len(c.scores) for c in result.candidates] == [2, 1, 1, 2]


def test_keeping_everyone_equals_not_pruning(backbone):
    sampler = SelectiveSampler(backbone, PrefersSeeds(0, 1, 2))
    kept = sampler("a", n=3, k=3, rungs=[0.3], policy="all", **ARGUMENTS).images
    generators = [torch.Generator("cpu").manual_seed(i) for i in range(3)]
    plain = backbone.pipe(["a"] * 3, generator=generators, **ARGUMENTS).images
    assert torch.allclose(torch.stack(kept), plain, atol=1e-5)


def test_features_are_in_seed_order_and_do_not_depend_on_the_batch(backbone):
    arguments = {k: v for k, v in ARGUMENTS.items() if k != "output_type"}
    one_by_one = SelectiveSampler(backbone, "random", batch_size=1).features("a", [3, 1, 2], **arguments)
    together = SelectiveSampler(backbone, "random").features("a", [3, 1, 2], **arguments)
    assert together.shape == (3, 8, 8, 8) and torch.allclose(one_by_one, together, atol=1e-4)
    swapped = SelectiveSampler(backbone, "random").features("a", [2, 1, 3], **arguments)
    assert torch.allclose(swapped.flip(0), together, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"k": 0}, "k = 0"), ({"k": 6}, "k = 6"), ({"rungs": [1.0]}, "rungs"), ({"seeds": [1, 1]}, "seed 1"),
     ({"prompt": ""}, "empty"), ({"n": 0}, "n = 0"), ({"policy": "best"}, "best")],
)  # fmt: skip
def test_bad_calls_are_refused(backbone, arguments, said):
    with pytest.raises(UsageError, match=said):
        SelectiveSampler(backbone, "random")(**{"prompt": "a", **arguments}, **ARGUMENTS)


def test_nan_scores_are_never_preferred(backbone):
    class Broken(PrefersSeeds):
        def __call__(self, stage):
            scores = super().__call__(stage)
            scores[0] = torch.nan
            return scores

    result = SelectiveSampler(backbone, Broken(0, 2))("a", n=3, k=1, rungs=[0.2], **ARGUMENTS)
    assert [c.seed for c in result.kept] == [2]
