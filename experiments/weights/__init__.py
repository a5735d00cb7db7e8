"""When weights help: `python -m experiments weights`, a module per section."""

from experiments.runner.study import Effort, Sections, command, sections_of
from experiments.weights import convergence, fair, sources

SECTIONS = {
    "sources": sources.study,
    "fair": fair.study,
    "digits": fair.digits,
    "convergence": convergence.study,
}


@command("weights", "When weights help. Data sets and samples")
def weights(runs: int = 200, seed: int = 0) -> Sections:
    """Compares weights with none: noisy sources, best steps, convergence.

    Args:
        runs: Data sets and samples for each mean, a fifth of them on MNIST. Below 20
            also fewer compression factors, as a quick check.
    """
    return sections_of(SECTIONS, Effort(runs, is_full=runs >= 20), seed)
