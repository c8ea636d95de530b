import numpy as np
import pytest

from domains.errors import UserError
from domains.shards import TASK_ID, Shard, choose_shard, share_out


def test_a_shard_is_named_by_the_user_or_by_slurm():
    assert choose_shard(None, None, {TASK_ID: "3"}) is None  # a job that was not split runs whole in any array
    assert choose_shard(16, 3, {}) == Shard(3, 16)
    assert choose_shard(16, None, {TASK_ID: "15"}) == Shard(15, 16)
    assert choose_shard(16, 3, {TASK_ID: "5"}) == Shard(3, 16)
    assert str(Shard(3, 16)) == "3-of-16"


@pytest.mark.parametrize(
    ("shards", "shard", "environment", "told"),
    [
        (None, 3, {}, "shard=3: of how many"),
        (0, 0, {}, "shards=0: must be at least 1"),
        (16, None, {}, r"shards=16: which of them is this process\? give shard=<0 to 15>, or .* --array=0-15"),
        (16, 16, {}, "shard=16: must be at most 15, for shards=16"),
        (16, -1, {}, "shard=-1: must be at least 0"),
        (16, None, {TASK_ID: "16"}, "SLURM_ARRAY_TASK_ID=16: there are shards 0 to 15; give sbatch --array=0-15"),
    ],
)
def test_what_names_no_shard_is_told(shards, shard, environment, told):
    with pytest.raises(UserError, match=told):
        choose_shard(shards, shard, environment)


def test_work_is_shared_evenly_and_always_in_the_same_way():
    sizes = np.random.default_rng(0).integers(1, 1000, 200).tolist()
    shares = share_out(sizes, 7)
    assert sorted(part for share in shares for part in share) == list(range(200))
    work = [sum(sizes[part] for part in share) for share in shares]
    assert max(work) <= 1.01 * sum(sizes) / 7
    assert shares == share_out(sizes, 7)
    assert share_out([5, 5], 3) == [[0], [1], []]
    human = [248, 242, 198, 190, 181, 170, 159, 145, 138, 133, 135, 133, 114, 107, 101, 90, 83, 80, 58, 64, 46, 50, 156]
    assert max(sum(human[part] for part in share) for share in share_out(human, 8)) < 1.1 * sum(human) / 8
