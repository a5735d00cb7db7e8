"""Checkpoints on a disk that loses or changes bytes."""

import random
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes
from jaxwgc.distributed.ray import _training
from jaxwgc.distributed.ray._callbacks import TrainingState
from jaxwgc.distributed.ray._response_limit import ResponseLimit
from tests.distributed.simulated import round_of_messages

# Threads of Orbax that fail may say so after its event loop was closed.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

CODE = codes.uncoded(2)
KEY = jax.random.key(0)
# Arrays of this length are in files of their own, which Orbax does not check.
PARAMS = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)
# A checkpoint is saved every three steps.
SAVED_STEPS = [3, 6]


def train(num_steps, folder, params=PARAMS, code=CODE, key=KEY, **options):
    """Trains with checkpoints in a folder, and returns the state.

    Each round has random messages of all workers.
    """
    num_workers = code.num_workers
    size = sum(leaf.size for leaf in jax.tree.leaves(params))

    def compute(params, step, key):
        messages = np.random.default_rng(step).normal(size=(num_workers, size))
        losses = np.ones(num_workers)
        received = np.ones(num_workers, bool)
        return round_of_messages(np.float32(messages), received, losses)

    chain = optax.chain(jaxwgc.decode_aggregate(code), optax.adam(0.1))
    return _training.train(
        compute,
        code,
        chain,
        TrainingState(params, chain.init(params), key, 0),
        num_steps,
        checkpoint=folder,
        checkpoint_every=3,
        limit=ResponseLimit(None, 2),
        **options,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns a folder with checkpoints of steps 3 and 6, and the params after 6."""
    folder = tmp_path_factory.mktemp("checkpoints")
    params = train(6, folder).params
    return folder, params


@pytest.fixture
def copied(trained, tmp_path):
    """Returns a copy of the folder of checkpoints, and the params after step 6."""
    folder, params = trained
    return shutil.copytree(folder, tmp_path / "copy"), params


def largest_file(folder, step):
    """Returns the file of a step that holds its largest array."""
    files = [path for path in (folder / str(step)).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def damage_metadata(folder, step):
    path = next((folder / str(step)).rglob("_METADATA"))
    path.write_bytes(path.read_bytes()[:100])


def remove_metadata(folder, step):
    next((folder / str(step)).rglob("_METADATA")).unlink()


def truncate_data(folder, step):
    path = largest_file(folder, step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_one_bit(folder, step):
    path = largest_file(folder, step)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = [damage_metadata, remove_metadata, truncate_data, flip_one_bit]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_step_is_named_with_the_intact_one(copied, damage):
    """Nothing in the folder changes."""
    folder, _ = copied
    damage(folder, 6)
    match = "(?s)damaged steps in .*: step 6: .*checkpoint_fallback=True .*from step 3"
    with pytest.raises(ValueError, match=match):
        train(6, folder)
    assert {"3", "6"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_training_falls_back_if_told_to(copied, damage, caplog):
    """It ends with the same params, and the next run finds intact checkpoints."""
    folder, params = copied
    damage(folder, 6)
    seen = []
    state = train(
        6,
        folder,
        callbacks=[lambda progress: seen.append(progress.state.step)],
        checkpoint_fallback=True,
    )
    assert seen == [4, 5, 6]
    np.testing.assert_array_equal(state.params, params)
    assert "Training continues from step 3" in caplog.text
    assert len([*folder.glob("6.damaged-*")]) == 1
    again = train(6, folder)
    assert again.step == 6
    np.testing.assert_array_equal(again.params, params)


def test_fallback_changes_nothing_if_the_newest_step_is_intact(copied):
    folder, params = copied
    before = sorted(path.name for path in folder.iterdir())
    state = train(6, folder, checkpoint_fallback=True)
    np.testing.assert_array_equal(state.params, params)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("is_saved", [False, True])
def test_ctrl_c_says_where_the_state_is(copied, caplog, is_saved):
    """Without the frames in which it came."""
    folder, _ = copied
    caplog.set_level("INFO", "jaxwgc.distributed")

    def interrupt(progress):
        if progress.state.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as info:
        train(9, folder if is_saved else None, callbacks=[interrupt])
    frames = [entry.name for entry in info.traceback]
    assert frames[1:] == ["train", "train"]
    where = f"its state is in {folder}" if is_saved else "its state is not saved: "
    assert str(info.value).startswith(f"training ended after step 8; {where}")
    line = f"training continues from step 6 in {folder}"
    assert (line in caplog.messages) == is_saved
    if is_saved:
        assert train(8, folder).step == 8


@pytest.mark.parametrize("fallback", [False, True])
def test_all_steps_damaged_is_an_error(copied, fallback):
    """Training never begins anew in the folder of another run."""
    folder, _ = copied
    for step in SAVED_STEPS:
        flip_one_bit(folder, step)
    with pytest.raises(ValueError, match="step 6: .*step 3: .*and no intact step"):
        train(6, folder, checkpoint_fallback=fallback)


def test_step_is_damaged_twice(copied):
    """A second damaged step of the same number does not end the run."""
    folder, params = copied
    for _ in range(2):
        flip_one_bit(folder, 6)
        state = train(6, folder, checkpoint_fallback=True)
        np.testing.assert_array_equal(state.params, params)


@pytest.mark.parametrize(
    "params",
    [
        {"a.b": jnp.ones(3), "a": {"b": jnp.zeros(3)}},
        {"a": {"0": jnp.ones(3)}, "a.0": jnp.zeros(2), "a']['0": jnp.zeros(1)},
        {"a/b": jnp.ones(3), "..": [jnp.zeros(2)], "": jnp.zeros(1)},
        {"full": jnp.ones(3), "empty": jnp.zeros((0, 4))},
    ],
)
def test_params_of_any_names_and_sizes_are_restored(tmp_path, params):
    """Orbax joins names by dots, and saves no leaf of size zero."""
    saved = train(3, tmp_path, params)
    resumed = train(3, tmp_path, params)
    assert resumed.step == 3
    assert jax.tree.structure(resumed) == jax.tree.structure(saved)
    leaves = jax.tree.leaves((saved.params, saved.optimizer_state))
    resumed_leaves = jax.tree.leaves((resumed.params, resumed.optimizer_state))
    for before, after in zip(leaves, resumed_leaves):
        assert before.shape == after.shape
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


def test_a_key_of_another_implementation_is_restored(tmp_path):
    key = jax.random.key(0, impl="rbg")
    saved = train(3, tmp_path, key=key)
    resumed = train(3, tmp_path, key=key)
    assert resumed.step == 3
    assert jax.random.key_impl(resumed.key) == jax.random.key_impl(key)
    np.testing.assert_array_equal(
        jax.random.key_data(resumed.key), jax.random.key_data(saved.key)
    )


def test_another_number_of_parts_is_a_warning(tmp_path):
    """The number of workers may change without one."""
    params = jnp.ones(3)
    train(3, tmp_path, params, codes.uncoded(12))
    match = "was trained with 12 parts.* now sums parts 0 to 3 instead of 0 to 11"
    with pytest.warns(UserWarning, match=match):
        assert train(6, tmp_path, params, codes.uncoded(4)).step == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(9, tmp_path, params, codes.uncoded(2, num_parts=4)).step == 9


def test_random_damage_is_never_restored(copied):
    """Files of the newest step are truncated, emptied, removed, or bits change."""
    folder, params = copied
    original = shutil.copytree(folder, folder.with_name("original"))
    draw = random.Random(0)
    files = sorted(path for path in (original / "6").rglob("*") if path.is_file())
    num_named = 0
    for _ in range(40):
        shutil.rmtree(folder)
        shutil.copytree(original, folder)
        _damage_at_random(folder / draw.choice(files).relative_to(original), draw)
        try:
            state = train(6, folder)
        except ValueError as error:
            assert "step 6: " in str(error)
            assert "from step 3, which is intact" in str(error)
            num_named += 1
        else:
            # The file was not needed.
            np.testing.assert_array_equal(state.params, params)
    assert num_named >= 5


def _damage_at_random(path, draw):
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data)) if data else 0
    kind = draw.choice(["truncate", "flip", "zeros", "remove"])
    if kind == "remove":
        path.unlink()
        return
    if kind == "truncate":
        del data[place:]
    elif kind == "flip" and data:
        data[place] ^= 1 << draw.randrange(8)
    else:
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    path.write_bytes(data)
