"""Score tables are read, and what cannot be one is refused in a line that names the file."""

import pickle

import numpy as np
import pytest

from probeselect.core.errors import UsageError
from probeselect.data.score_table import read_score_table, read_score_tables


def written(path, score, steps=None, **more):
    np.savez(path, score=score, steps=np.arange(len(score)) if steps is None else steps, **more)
    return path


def test_the_last_row_is_the_reward(tmp_path):
    score = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float16)
    table = read_score_table(written(tmp_path / "flux.npz", score, np.array([1, 3, 5, 19])))
    (scorer,) = table.scorers
    assert (scorer.name, [*scorer.scores], table.total_steps) == ("flux", [1, 3, 5], 20) and table.valid.all()
    np.testing.assert_array_equal(table.rewards, score[3])
    np.testing.assert_array_equal(scorer.scores[3], score[1])


def test_rewards_may_come_from_another_file(tmp_path):
    draw = np.random.default_rng(0)
    whole = written(tmp_path / "base.npz", draw.standard_normal((6, 3, 5)))
    early = written(tmp_path / "early.npz", draw.standard_normal((3, 3, 5)))
    table = read_score_table(early, whole)
    assert [*table.scorers[0].scores] == [0, 1, 2] and table.total_steps == 6 and table.evaluator == "base"
    np.testing.assert_array_equal(table.rewards, np.load(whole)["score"][-1])
    with pytest.raises(UsageError, match=r"early\.npz: \(3, 5\) prompts and candidates, .*other\.npz has \(3, 4\)"):
        read_score_table(early, written(tmp_path / "other.npz", np.zeros((6, 3, 4))))
    with pytest.raises(UsageError, match=r"early\.npz: no score before step 1, with which .*short\.npz ends"):
        read_score_table(early, written(tmp_path / "short.npz", np.zeros((2, 3, 5))))
    with pytest.raises(
        UsageError, match=r"else\.npz: its finished pictures got other rewards than those of .*base\.npz"
    ):
        read_score_table(written(tmp_path / "else.npz", draw.standard_normal((6, 3, 5))), whole)
    for table in (read_score_table(whole, whole), read_score_table(whole)):
        assert [*table.scorers[0].scores] == [0, 1, 2, 3, 4]


def test_several_files_are_one_table_of_the_candidates_that_all_have(tmp_path):
    draw = np.random.default_rng(0)
    score = draw.standard_normal((6, 3, 5))
    whole = written(tmp_path / "base.npz", score)
    early = draw.standard_normal((3, 3, 5))
    early[1, 2, 4] = np.nan
    table = read_score_tables({"plain": whole, "mine": written(tmp_path / "early.npz", early)})
    assert [each.name for each in table.scorers] == ["plain", "mine"] and table.evaluator == "base"
    assert table.valid.sum() == 14 and not table.valid[2, 4]
    np.testing.assert_array_equal(table.scorers[1].scores[2], early[2])
    with pytest.raises(UsageError, match="give at least one file"):
        read_score_tables({})


def test_repeated_candidates_count_once_and_what_is_not_finite_not_at_all(tmp_path):
    score = np.random.default_rng(0).standard_normal((3, 2, 6))
    score[:, 0, 4] = score[:, 0, 1]  # the same candidate again
    score[2, 0, 5] = score[2, 0, 1]  # the same reward, by another way
    score[1, 1, 2], score[2, 1, 3] = np.nan, np.inf
    valid = read_score_table(written(tmp_path / "t.npz", score)).valid
    assert valid.tolist() == [[True, True, True, True, False, True], [True, True, False, False, True, True]]


@pytest.mark.parametrize(
    ("score", "steps", "says"),
    [
        (np.zeros((3, 4)), None, r"score is \(3, 4\), must be"),
        (np.zeros((3, 0, 4)), None, "none of them 0"),
        (np.zeros((1, 2, 3)), None, "one row alone"),
        (np.zeros((3, 2, 3)), np.array([0, 1]), "3 whole numbers"),
        (np.zeros((3, 2, 3)), np.array([0.0, 1.0, 2.0]), "3 whole numbers"),
        (np.zeros((3, 2, 3)), np.array([0, 2, 2]), "must rise"),
        (np.zeros((3, 2, 3)), np.array([-1, 0, 1]), "must rise"),
        (np.zeros((3, 2, 3)), None, "no prompt has two different candidates"),
        (np.random.default_rng(0).standard_normal((3, 2, 1)), None, "no prompt has two different candidates"),
        (np.full((3, 2, 3), np.nan), None, "no prompt has two different candidates"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, score, steps, says):
    with pytest.raises(UsageError, match=rf"t\.npz: .*{says}"):
        read_score_table(written(tmp_path / "t.npz", score, steps))


def test_files_that_are_no_npz_are_refused_and_nothing_in_them_runs(tmp_path):
    with pytest.raises(UsageError, match="there is no such file"):
        read_score_table(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("score")
    with pytest.raises(UsageError, match=r"text\.npz: is no \.npz"):
        read_score_table(tmp_path / "text.npz")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"score": 1}))
    with pytest.raises(UsageError, match=r"pickle\.npz: is no \.npz"):
        read_score_table(tmp_path / "pickle.npz")
    with pytest.raises(UsageError, match=r"objects\.npz: is no \.npz of plain arrays"):
        read_score_table(written(tmp_path / "objects.npz", np.array([{"a": 1}], dtype=object)))
    np.savez(tmp_path / "names.npz", scores=np.zeros(3))
    with pytest.raises(UsageError, match=r"names\.npz: holds scores, where `score` and `steps` are needed"):
        read_score_table(tmp_path / "names.npz")
