"""Options of a search: every wrong value is named with its rule."""

import pytest

from watos_jax.search.space import Options


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recompute": ("some",)}, "recompute is 'some': it must be one of none, "),
        ({"schedule": 1}, "schedule is 1: it must be one of 1f1b, gpipe"),
        ({"global_batch_size": 0}, "global_batch_size is 0: it must be a whole number, at least 1"),
        ({"global_batch_size": "eight"}, "global_batch_size is 'eight': it must be a number"),
        ({"global_batch_size": (8, 16)}, r"global_batch_size is \(8, 16\): it must be a number"),
        ({"micro_batch_sizes": ()}, "micro_batch_sizes is empty: it must hold at least one"),
        ({"micro_batch_sizes": (1, 2.5)}, "micro_batch_sizes is 2.5: it must be a whole number, at least 1"),
        ({"virtual_stages": True}, "virtual_stages is True: it must be a number"),
        ({"optimizer_sharding": (0, 4)}, "optimizer_sharding is 4: it must be 0, 1, 2 or 3"),
        ({"least_use": 1.5}, "least_use is 1.5: it must be from 0 to 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(change, message):
    with pytest.raises(ValueError, match=message):
        Options(**change)


def test_one_value_stands_for_a_list_of_one():
    assert Options(schedule="gpipe", micro_batch_sizes=2) == Options(schedule=("gpipe",), micro_batch_sizes=(2,))
