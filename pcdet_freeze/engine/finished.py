"""The message of a run that has nothing left to train."""

from __future__ import annotations

ANOTHER = "to start a new run choose another --extra_tag."


def nothing_left(epoch: int, epochs: int, iteration: int, max_iters: int | None) -> str:
    """Where the run ended, by epochs or by ``--max_iters``, and how to train longer."""
    if max_iters is not None and iteration >= max_iters:
        return (
            f"Nothing is left to train: the run is finished at its limit of {max_iters} iterations "
            f"(--max_iters), {iteration} are done. To train longer raise --max_iters, or leave it out to "
            f"train OPTIMIZATION.NUM_EPOCHS epochs; {ANOTHER}"
        )
    return (
        f"Nothing is left to train: epoch {epoch} of {epochs}, {iteration} iterations are done. To train "
        f"longer raise --epochs; {ANOTHER}"
    )
