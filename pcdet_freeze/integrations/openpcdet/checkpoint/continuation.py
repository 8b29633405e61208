"""How a frozen training of OpenPCDet is continued: one message for its log."""

from __future__ import annotations

from pcdet_freeze.freezing import FreezePlan


def continuation(plan: FreezePlan) -> str:
    """How to continue from the checkpoints of a frozen run, and what OpenPCDet alone would do."""
    return (
        "to continue this training, run the same command with the same list: python -m "
        f"pcdet_freeze.openpcdet tools/train.py ... OpenPCDet alone would {_alone(plan)}. For another list, "
        "or none, pass the checkpoint as --pretrained_model, with another --extra_tag."
    )


def _alone(plan: FreezePlan) -> str:
    """What OpenPCDet without the plugin would do; with a schedule it depends on the checkpoint."""
    if not plan.parameters:
        return "resume, but without the freeze"
    text = "restart at epoch 0 without a message, because the optimizer of a frozen run has fewer entries"
    if plan.schedule:
        text += "; if the schedule unfroze everything, it would load the optimizer state in another order"
    return text
