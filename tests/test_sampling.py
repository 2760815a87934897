"""Splits don't leak; a plan gives every sample once, in an order that follows the seed alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scibench_data.descriptor import SplitRule
from scibench_data.sampling import Indices, Plan, Reading, Shuffle, plan, split, split_digest

RULE = SplitRule(
    group="micrograph", fractions={"train": 0.8, "validation": 0.1, "test": 0.1}, seed=3, reason=""
)
KINDS: list[Shuffle | None] = [None, "uniform", "block"]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=300), st.integers(0, 9))
def test_splits_are_disjoint_complete_and_keep_groups_together(
    groups: list[int], seed: int
) -> None:
    rule = SplitRule(group="g", fractions=RULE.fractions, seed=seed, reason="")
    labels = np.array(groups)

    parts = split(labels, rule)

    together = np.concatenate(list(parts.values()))
    assert sorted(together.tolist()) == list(range(len(labels)))
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(labels[parts[one]].tolist()) & set(labels[parts[other]].tolist())


def test_the_split_is_pinned() -> None:
    """A published split must never move: this digest may not change."""
    parts = split(np.repeat(np.arange(50), 4), RULE)

    assert [len(part) for part in parts.values()] == [160, 20, 20]
    assert split_digest(parts) == (
        "662bf8f78d407761b2376cb81d76f47991b6ca8383d4ea8c691006705dd033a2"
    )


def test_the_order_of_samples_does_not_move_a_group() -> None:
    groups = np.repeat(np.arange(50), 4)
    shuffled = np.random.default_rng(0).permutation(groups)

    one, other = split(groups, RULE), split(shuffled, RULE)

    for name in one:
        assert set(groups[one[name]].tolist()) == set(shuffled[other[name]].tolist())


@given(
    st.sets(st.integers(0, 199), min_size=1),
    st.integers(1, 70),
    st.integers(1, 400),
    st.sampled_from(KINDS),
    st.integers(1, 4),
)
def test_ranks_share_every_sample_once(
    chosen: set[int], block: int, window: int, shuffle: Shuffle | None, ranks: int
) -> None:
    indices: Indices = np.array(sorted(chosen), dtype=np.int64)
    reading = Reading(block=block, window=window)

    shares = [
        plan(
            indices,
            reading,
            shuffle=shuffle,
            rng=np.random.default_rng(5),
            rank=rank,
            ranks=ranks,
        )
        for rank in range(ranks)
    ]

    seen = np.concatenate([share.order for share in shares]).tolist()
    lengths = {len(share.order) for share in shares}
    assert len(set(seen)) == len(seen)
    assert set(seen) <= chosen
    if shuffle:
        assert lengths == {len(chosen) // ranks}
    else:
        assert seen == sorted(chosen)
        assert max(lengths) - min(lengths) <= 1
    for share in shares:
        assert (
            np.concatenate([*share.windows(), np.array([], int)]).tolist() == share.order.tolist()
        )
        assert all(len(part) for part in share.windows())


@given(
    st.sets(st.integers(0, 199), min_size=1),
    st.integers(2, 40),
    st.integers(1, 100),
    st.sampled_from([None, "block"]),
)
def test_a_block_is_in_one_window_and_a_window_holds_few_blocks(
    chosen: set[int], block: int, window: int, shuffle: Shuffle | None
) -> None:
    indices: Indices = np.array(sorted(chosen), dtype=np.int64)

    found = plan(
        indices,
        Reading(block=block, window=window),
        shuffle=shuffle,
        rng=np.random.default_rng(0),
    )

    blocks = [set((part // block).tolist()) for part in found.windows()]
    assert sum(map(len, blocks)) == len(set((indices // block).tolist()))
    assert all(len(part) <= max(window // block, 1) for part in blocks)


@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(1, 7),
    st.integers(0, 12),
    st.sampled_from(KINDS),
)
def test_workers_and_a_new_start_give_the_batches_of_one(
    samples: int, batch: int, workers: int, skipped: int, shuffle: Shuffle | None
) -> None:
    def cut(whole: Plan) -> list[list[int]]:
        order = whole.order.tolist()
        return [order[start : start + batch] for start in range(0, len(order), batch)]

    whole = plan(
        np.arange(samples),
        Reading(block=8, window=64),
        shuffle=shuffle,
        rng=np.random.default_rng(1),
    )
    rest = whole.after(skipped * batch)
    shares = [cut(rest.every(number, workers, batch)) for number in range(workers)]

    in_turn = [shares[n % workers][n // workers] for n in range(len(cut(whole)[skipped:]))]
    assert in_turn == cut(whole)[skipped:]
    assert rest.ends.tolist() == [] or rest.ends[-1] == len(rest.order)


def test_a_uniform_shuffle_is_uniform() -> None:
    """Each sample is as likely at each place: chi-squared over 4,000 orders of 6 samples."""
    rng = np.random.default_rng(2)
    counts = np.zeros((6, 6))
    for _ in range(4000):
        order = plan(np.arange(6), Reading(block=3, window=2), shuffle="uniform", rng=rng).order
        counts[np.arange(6), order] += 1

    expected = 4000 / 6
    assert ((counts - expected) ** 2 / expected).sum() < 60  # 25 degrees: P(> 60) < 0.0001


def test_a_block_shuffle_mixes_its_windows() -> None:
    """Batch means vary little more than those of independent draws, as `Reading.window` says."""
    indices = np.arange(65_536)

    order = plan(
        indices, Reading(block=32, window=2048), shuffle="block", rng=np.random.default_rng(0)
    ).order

    means = order.reshape(-1, 64).mean(1)
    inflation = means.var() / (indices.var() / 64)
    assert 0.8 < inflation < 3.0
