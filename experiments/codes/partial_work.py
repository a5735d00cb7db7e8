"""What the unfinished work of stragglers is worth, by the deadline of the round."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments import results
from experiments.sections import Effort, Section, half_width, percent
from jaxwgc import codes as constructors
from jaxwgc import stragglers

NUM_WORKERS = 20
# Of a worker's share of the data where every part is on one worker: mean time is one.
SHIFT, RATE = 0.5, 2.0
DEADLINES, FEW_DEADLINES = (0.75, 1.0, 1.5, 2.0, 3.0, 4.0), (1.0, 2.0)
MAX_RUNS = 1_000
BATCH_SIZE = 100


class Entry(NamedTuple):
    """A code with all messages or none, and one that uses finished parts."""

    name: str
    single: jaxwgc.GradientCode
    several: jaxwgc.GradientCode


def entries() -> list[Entry]:
    """All with 20 workers."""
    uncoded = constructors.uncoded(NUM_WORKERS, 4 * NUM_WORKERS)
    cluster = constructors.cyclic_mds(5, 2)
    clustered = constructors.clustered(cluster, NUM_WORKERS // 5)
    repetition = constructors.fractional_repetition(NUM_WORKERS, 3)
    partial = constructors.partial(constructors.cyclic_mds(NUM_WORKERS, 1), 2)
    codes = {
        f"uncoded({NUM_WORKERS}, {4 * NUM_WORKERS})": uncoded,
        f"clustered(cyclic_mds(5, 2), {NUM_WORKERS // 5})": clustered,
        f"fractional_repetition({NUM_WORKERS}, 3)": repetition,
    }
    return [
        *(
            Entry(name, code, constructors.multi_message(code))
            for name, code in codes.items()
        ),
        # Both messages or none, against the first without the second.
        Entry(f"partial(cyclic_mds({NUM_WORKERS}, 1), 2)", partial, partial),
    ]


def section(effort: Effort, key: jax.Array) -> Section:
    """The table."""
    deadlines = DEADLINES if effort.is_full else FEW_DEADLINES
    runs = min(effort.runs, MAX_RUNS)
    table = results.ResultTable(
        f"Unfinished work, {NUM_WORKERS} workers: mean error in percent of {runs} "
        "rounds, whole workers / finished parts",
        [
            "code",
            "messages",
            "work",
            *(f"deadline {deadline:g}" for deadline in deadlines),
        ],
    )
    numbers = {}
    for entry in entries()[slice(None if effort.is_full else 2)]:
        found = jaxwgc.summarize(
            jaxwgc.monte_carlo(
                lambda key, entry=entry: one_run(key, entry, deadlines),
                jax.random.fold_in(key, 8),
                runs,
                batch_size=BATCH_SIZE,
            )
        )
        numbers[entry.name] = results.summary_numbers(found)
        table.add_row(
            f"`{entry.name}`",
            str(entry.several.messages_per_worker),
            f"{work(entry.single):.3g}",
            *(
                " / ".join(
                    percent(found[kind].mean[at], half_width(found[kind])[at])
                    for kind in ("whole", "finished")
                )
                for at in range(len(deadlines))
            ),
        )
    return Section(
        numbers={"runs": runs, "deadlines": deadlines, "errors": numbers},
        tables={"partial_work": table},
        figures={},
    )


def work(code: jaxwgc.GradientCode) -> float:
    """What a worker computes, over its share of the data."""
    return float(np.mean(code.loads)) * code.num_workers / code.num_parts


def one_run(key: jax.Array, entry: Entry, deadlines: tuple[float, ...]):
    """Errors (deadlines,) over the number of parts, of the same finish times."""
    code = entry.single
    share = code.num_parts / code.num_workers
    delay = stragglers.shifted_exponential(SHIFT / share, RATE * share)
    errors = {"whole": [], "finished": []}
    for deadline in deadlines:
        model = stragglers.delayed(delay, stragglers.deadline(deadline))
        loads = jnp.asarray(code.loads, jnp.float32)
        arrivals, _ = model.sample(key, (), loads)
        assert arrivals.finished is not None
        finished = jaxwgc.decoding_error(entry.several, finished=arrivals.finished)
        errors["whole"].append(
            jaxwgc.decoding_error(code, arrivals.received) / code.num_parts
        )
        errors["finished"].append(finished / entry.several.num_parts)
    return {kind: jnp.stack(own) for kind, own in errors.items()}
