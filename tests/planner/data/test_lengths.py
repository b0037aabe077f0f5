from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.data.lengths import DataLengths, proposed_length
from profiles.errors import ConfigError

rows = st.lists(st.integers(1, 5000), min_size=1, max_size=50)


def test_empty_data_is_refused():
    with pytest.raises(ConfigError, match="no rows"):
        DataLengths.of(())


def test_a_batch_is_padded_to_its_longest_row():
    assert DataLengths.of((10, 20)).expected_longest(2, 100) == pytest.approx(20 * 3 / 4 + 10 / 4)


@given(rows, st.integers(1, 64), st.integers(1, 6000))
def test_padding_grows_with_the_batch_and_stays_within_the_longest_row(sample, batch, max_length):
    data = DataLengths.of(sample)
    padded = data.expected_longest(batch, max_length)
    assert data.mean(max_length) <= padded * (1 + 1e-9)
    assert padded <= min(data.longest, max_length) * (1 + 1e-9)
    assert padded <= data.expected_longest(batch + 1, max_length) * (1 + 1e-9)


@given(rows)
def test_no_row_is_cut_at_the_length_of_the_longest(sample):
    data = DataLengths.of(sample)
    assert data.num_cut(data.longest) == 0
    assert data.num_cut(data.longest - 1) == Counter(sample)[data.longest]


def test_a_percentile_is_a_length_that_the_share_does_not_exceed():
    data = DataLengths.of(range(1, 101))
    assert [data.percentile(share) for share in (0.5, 0.99, 1)] == [50, 99, 100]


def best_fit_decreasing(sample, max_length):
    """The rows of best-fit decreasing, one document after the other."""
    room = []
    for length in sorted((min(one, max_length) for one in sample), reverse=True):
        fitting = [space for space in room if space >= length]
        if fitting:
            room.remove(min(fitting))
        room.append((min(fitting) if fitting else max_length) - length)
    return len(room)


@given(rows, st.integers(1, 6000))
def test_packing_whole_counts_makes_as_many_rows_as_packing_one_by_one(sample, max_length):
    assert DataLengths.of(sample).num_packed(max_length) == best_fit_decreasing(sample, max_length)


def test_as_many_rows_are_packed_as_trl_packs():
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    sample = [(7 * n) % 61 + 1 for n in range(300)]
    ids = datasets.Dataset.from_dict({"input_ids": [[0] * length for length in sample]})
    assert DataLengths.of(sample).num_packed(100) == len(trl.pack_dataset(ids, 100, "bfd"))


def test_the_proposed_length_cuts_nothing():
    proposal = proposed_length(DataLengths.of((100, 700)), limit=2048)
    assert (proposal.max_length, proposal.why) == (704, "cuts no row; the longest has 700 tokens")


def test_a_few_far_longer_rows_are_not_waited_for():
    proposal = proposed_length(DataLengths.counted({100: 1995, 9000: 5}))
    assert proposal.max_length == 128
    assert proposal.why.startswith("cuts 5 of 2,000 rows; to keep the longest whole, 9,000 tokens, ")


def test_no_more_than_the_positions_of_the_model_are_proposed():
    assert proposed_length(DataLengths.of((5000,)), limit=4096).max_length == 4096
    assert proposed_length(DataLengths.counted({4000: 99, 5000: 1}), limit=4096).max_length == 4032


@given(rows, st.none() | st.integers(64, 6000))
def test_a_proposed_length_keeps_nearly_all_rows_whole_where_the_model_can(sample, limit):
    data = DataLengths.of(sample)
    proposal = proposed_length(data, limit)
    assert limit is None or proposal.max_length <= limit
    assert proposal.max_length == limit or data.share_cut(proposal.max_length) <= 0.01
