"""Decoding error with the finished parts of stragglers, by deadline of the round."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxwgc
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable, percents
from jaxwgc import codes, stragglers

NUM_WORKERS = 20
# At load 1: mean time is one.
SHIFT = 0.5
RATE = 2.0
DEADLINES = (0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
FEW_DEADLINES = (1.0, 2.0)
# Columns of the table.
SHOWN = slice(None, None, 2)
MAX_RUNS = 1_000


class Entry(NamedTuple):
    """A code with all messages of a worker or none, and one with finished parts."""

    name: str
    single: jaxwgc.GradientCode
    several: jaxwgc.GradientCode


def entries() -> list[Entry]:
    """Returns codes for 20 workers."""
    uncoded = codes.uncoded(NUM_WORKERS, 4 * NUM_WORKERS)
    cluster = codes.cyclic_mds(5, 2)
    clustered = codes.clustered(cluster, NUM_WORKERS // 5)
    repetition = codes.fractional_repetition(NUM_WORKERS, 3)
    single = {
        f"uncoded({NUM_WORKERS}, {4 * NUM_WORKERS})": uncoded,
        f"clustered(cyclic_mds(5, 2), {NUM_WORKERS // 5})": clustered,
        f"fractional_repetition({NUM_WORKERS}, 3)": repetition,
    }
    split = codes.multi_message
    several = [Entry(name, code, split(code)) for name, code in single.items()]
    # Both messages or none, compared with the first without the second.
    partial = codes.partially_coded(codes.cyclic_mds(NUM_WORKERS, 1), 2)
    name = f"partially_coded(cyclic_mds({NUM_WORKERS}, 1), 2)"
    return [*several, Entry(name, partial, partial)]


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per code."""
    deadlines = DEADLINES if effort.is_full else FEW_DEADLINES
    runs = min(effort.runs, MAX_RUNS)
    chosen = entries() if effort.is_full else entries()[:2]
    cells = {
        entry.name: {
            "messages": entry.several.messages_per_worker,
            "work": entry.single.loads.mean(),
            "": Trial(one_run, entry, deadlines),
        }
        for entry in chosen
    }
    return Study(
        {"deadlines": deadlines, "codes": cells},
        key=jax.random.fold_in(key, 8),
        runs=runs,
        batch_size=100,
        tables={"partial_work": tabulate},
    )


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns two rows per code, and a column per deadline."""
    heads = [f"t = {deadline:g}" for deadline in numbers["deadlines"][SHOWN]]
    table = ResultTable(
        f"Unfinished work, {NUM_WORKERS} workers, deadline t: mean error in percent of "
        f"{numbers['runs']:,} rounds",
        ["code", "messages", "work", "counted", *heads],
    )
    for name, record in numbers["codes"].items():
        first_cells = [f"`{name}`", str(record.messages), f"{record.work:.3g}"]
        whole = percents(record.whole)[SHOWN]
        finished = percents(record.finished)[SHOWN]
        table.rows.append([*first_cells, "whole workers", *whole])
        table.rows.append([*first_cells, "finished parts", *finished])
    return table


def one_run(key: jax.Array, entry: Entry, deadlines: tuple[float, ...]) -> Numbers:
    """Returns errors per part, (deadlines,), of the same finish times."""
    code = entry.single
    delay = stragglers.shifted_exponential(SHIFT, RATE)
    loads = jnp.asarray(code.loads, jnp.float32)

    def at(deadline):
        model = stragglers.delayed(delay, stragglers.deadline(deadline))
        return model.sample(key, (), loads)[0]

    # Vectorized, which compiles faster.
    arrivals = jax.vmap(at)(jnp.array(deadlines, jnp.float32))
    whole = jaxwgc.decoding(code, arrivals.received).error
    finished = jaxwgc.decoding(entry.several, arrivals).error
    finished /= entry.several.num_parts
    return {"whole": whole / code.num_parts, "finished": finished}
