"""Where crystals are from: each once an epoch, the same for the same seed and number, and none of those kept aside."""

import numpy as np
import pytest

from tiny import TINY, large, tiny_crystals
from xrd_helpers import gridding
from xrd_helpers.config import UserError
from xrd_helpers.gridding import check_fit
from xrd_helpers.sources import Generated, Stored, training_sets
from xrd_helpers.storage import write_crystals


@pytest.fixture(scope="module")
def crystals():
    return tiny_crystals()


def small_file(path, crystals, rows=3):
    """Each crystal twice: as it is and, under another name, with a cell that no box holds."""
    both = [c for crystal in crystals for c in (crystal, large(crystal))]
    write_crystals(path, both, rows=rows)
    return [c.name for c in crystals]


@pytest.mark.slow
def test_crystals_of_a_file_come_once_an_epoch_mixed_over_its_row_groups(crystals, tmp_path):
    crystals = crystals[:10]
    names = small_file(tmp_path / "c.parquet", crystals)
    source = Stored(tmp_path / "c.parquet", TINY, 1.8)
    assert len(source) == len(crystals) and len(source.groups) > 4
    source.MIXED = 2
    n_steps = len(crystals) // 2
    epochs = [[c.name for step in range(first, first + n_steps) for c in source.batch(5, step, 2, slice(None))]
              for first in (0, n_steps)]
    assert all(sorted(epoch) == sorted(names) for epoch in epochs) and epochs[0] != epochs[1] != names
    assert len(source._cache) <= 3
    again = Stored(tmp_path / "c.parquet", TINY, 1.8)
    again.MIXED = 2
    late = again.batch(5, n_steps + 1, 2, slice(None))
    assert [c.name for c in late] == epochs[1][2:4], "a resumed training takes what the first would have taken"
    assert [c.name for c in again.batch(5, n_steps + 1, 2, slice(1, 2))] == epochs[1][3:4]
    original = {c.name: c for c in crystals}
    for crystal in late:
        np.testing.assert_allclose(crystal.fract, original[crystal.name].fract, atol=1e-6)
    rest = Stored(tmp_path / "c.parquet", TINY, 1.8, start=6)
    assert {c.name for step in range(4) for c in rest.batch(0, step, 1, slice(None))} <= set(names[3:])


@pytest.mark.slow
def test_generated_crystals_depend_on_seed_and_number_only():
    settings = dict(recipe="atoms", box=TINY, d_target=1.8)
    with Generated(workers=1, ahead=3, **settings) as source, Generated(workers=0, **settings) as alone:
        steps = [source.batch(3, step, 4, slice(None)) for step in range(5)]
        assert len(source._waiting) == 2, "the queue is bounded"
        names = [[c.name for c in batch] for batch in steps]
        assert names[3] == [c.name for c in alone.batch(3, 3, 4, slice(None))], "in this process, and from the middle"
        assert names[2] == [c.name for part in (slice(0, 2), slice(2, 4)) for c in alone.batch(3, 2, 4, part)]
        np.testing.assert_array_equal(steps[4][1].fract, alone.batch(3, 4, 4, slice(1, 2))[0].fract)
        other = alone.batch(4, 0, 4, slice(None))
        again = [source.batch(*arguments, slice(None)) for arguments in ((3, 5, 4), (4, 5, 4), (3, 0, 4), (3, 0, 2))]
        for crystals, arguments in zip(again, ((3, 5, 4), (4, 5, 4), (3, 0, 4), (3, 0, 2))):
            assert [c.name for c in crystals] == [c.name for c in alone.batch(*arguments, slice(None))], "another training"
    flat = [c for batch in steps for c in batch]
    assert len(flat) == 20 == len({c.name for c in flat}) and not np.allclose(other[0].cell.parameters, flat[0].cell.parameters)
    assert all(int(c.name.split("_")[-1]) >= 10**9 for c in flat), "none of a set for tests"
    assert {c.spacegroup.number for c in flat} == {14, 4, 5}  # P 21/c, P 21 and C 2, some with a and c swapped
    for crystal in flat:
        check_fit(crystal, TINY, 1.8)


def test_generated_molecules_are_of_groups_of_the_box_in_the_shares_of_the_recipe():
    source = Generated("molecules", gridding.BOXES["monoclinic"], workers=0)
    assert set(source.shares) == {"P 1 21/c 1", "P 1 21/n 1", "C 1 2/c 1", "P 1 21 1", "C 1 2 1", "C 1 c 1", "P 1 c 1"}
    assert source.shares["P 1 21/c 1"] == 0.22
    assert set(Generated("molecules", gridding.BOXES["triclinic"], workers=0).shares) == {"P -1", "P 1"}
    assert set(Generated("molecules", spacegroups=["P 1 21 1", "P -1"], workers=0).shares) == {"P 1 21 1"}


@pytest.mark.parametrize("arguments, message", [
    (dict(recipe="salts"), "no recipe 'salts'"),
    (dict(spacegroups=["P -1"]), "no space group of P -1 belongs to the monoclinic box"),
    (dict(spacegroups=["P 1 1 2"]), "unique axis b")])
def test_what_cannot_be_generated_is_one_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        Generated(workers=0, **arguments)


def test_validation_crystals_are_apart_and_the_same_for_every_seed(crystals, tmp_path):
    write_crystals(tmp_path / "c.parquet", [large(crystals[0]), *crystals])
    source, validation, sample = training_sets(tmp_path / "c.parquet", "", TINY, 1.8, 3, 0)
    assert [c.name for c in validation] == [c.name for c in crystals[:3]] and len(source) == len(crystals) - 3
    seen = {c.name for step in range(len(source)) for c in source.batch(0, step, 1, slice(None))}
    assert seen == {c.name for c in crystals[3:]}
    sets = [training_sets("", "atoms", TINY, 1.8, 3, 0) for _ in range(2)]
    assert [c.name for c in sets[0][1]] == [c.name for c in sets[1][1]] and len(sets[0][2]) == 100
    kept = {c.name for c in sets[0][1] + sets[0][2]}
    assert kept.isdisjoint(c.name for step in range(20) for c in sets[0][0].batch(0, step, 4, slice(None)))
    with pytest.raises(UserError, match=f"{len(crystals)} fit the tiny box, not more than the {len(crystals)} for validation"):
        training_sets(tmp_path / "c.parquet", "", TINY, 1.8, len(crystals), 0)
