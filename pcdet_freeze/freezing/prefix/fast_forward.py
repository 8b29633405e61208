"""The plan at work: from the beginning of a training forward to its end, and not a moment longer."""

from __future__ import annotations

from typing import Any

from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.paths import is_within, unwrap, walk
from pcdet_freeze.freezing.prefix.compile import Compiled
from pcdet_freeze.freezing.prefix.fold_bn import Fold
from pcdet_freeze.freezing.prefix.no_grad_call import PrefixCall, is_plain_float32
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import QUICK_FORM, Plan, has_hooks, has_hooks_inside
from pcdet_freeze.freezing.prefix.siblings import Siblings


class FastForward:
    """Runs training forwards of ``model`` by ``plan``.

    >>> fast = FastForward(model, plan_for(model, (batch,)))
    >>> with fast:
    ...     model(batch)

    Between forwards the model is as it was.

    Args:
        model: the frozen model; wrappers are seen through.
        plan: see :func:`pcdet_freeze.freezing.prefix.validate.plan_for`; it belongs to this state of
            freezing.
        options: those that the plan was made with.
        kind: how layers are folded.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, options: Options | None = None, kind: type[Fold] = Fold
    ) -> None:
        self.root, self.plan, self.options = unwrap(model), plan, options or Options()
        modules = {path: module for path, module, _ in walk(self.root)}
        self.folds = [kind(modules[layer], modules[norm], self.options) for layer, norm in plan.folds]
        self._siblings = [Siblings([modules[path] for path in group]) for group in plan.siblings]
        self._quick = [modules[path] for path in plan.quick]
        self._prefix = [modules[path] for path in plan.prefix]
        self._compiled = {modules[path]: self._compile(path, modules[path]) for path in plan.compiled}
        self._changed: list[tuple[nn.Module, Any]] = []
        self._seen = {id(fold): _look(fold) for fold in self.folds}

    def __enter__(self) -> FastForward:
        for module, forward in self._forwards().items():
            self._changed.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = forward
        return self

    def __exit__(self, *error: Any) -> None:
        for module, own in self._changed:
            module.__dict__.pop("forward", None)
            if own is not None:  # somebody gave this one module another forward
                module.__dict__["forward"] = own
        self._changed = []
        for group in self._siblings:
            group.clear()
        unanswered = [pair for pair, fold in zip(self.plan.folds, self.folds, strict=True) if fold.clear()]
        if unanswered and error[0] is None:
            layer, norm = unanswered[0]
            raise FreezeError(
                f"A frozen module must do the same in every step for {norm} to be folded into {layer}, but "
                f"this time {norm} did not run behind it. Set MODEL.FREEZE.FUSE: False."
            )

    @property
    def plain_calls(self) -> int:
        """Calls of compiled modules that ran as they are written all the same."""
        return sum(compiled.plain_calls for compiled in self._compiled.values())

    def _forwards(self) -> dict[nn.Module, Any]:
        """What to call in place of each module's forward."""
        found: dict[nn.Module, Any] = {}
        if can_fold_now(self.root, self.options):
            for fold in self.folds:
                if _look(fold) == self._seen[id(fold)]:
                    found.update(fold.forwards())
        for group in self._siblings:
            found.update(group.forwards())
        quick = (module for module in self._quick if not has_hooks_inside(module))
        found.update({module: getattr(module, QUICK_FORM) for module in quick})
        for module, compiled in self._compiled.items():
            compiled.renew()
            found[module] = compiled
        for module in self._prefix:
            found[module] = PrefixCall(module, found.get(module, module.forward), self.options)
        return found

    def _compile(self, top: str, module: nn.Module) -> Compiled:
        start = len(top) + 1
        pairs = zip(self.plan.folds, self.folds, strict=True)
        inside = [
            (layer[start:], norm[start:], fold) for (layer, norm), fold in pairs if is_within(layer, top)
        ]
        return Compiled(module, inside)


def _look(fold: Fold) -> tuple[Any, ...]:
    """What changes when a hook, a parametrization or another forward comes to one of the two layers."""
    return tuple((type(module), has_hooks(module)) for module in (fold.layer, fold.norm))


def can_fold_now(model: nn.Module, options: Options) -> bool:
    """Whether norm layers may be folded here and now: the prefix is in plain float32, or it is asked for."""
    return options.fuse == "force" or not options.is_exact or is_plain_float32(model)
