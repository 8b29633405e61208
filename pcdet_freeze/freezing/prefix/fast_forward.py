"""Patch module forwards for the duration of one training forward."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.entries.paths import is_within, unwrap, walk
from pcdet_freeze.freezing.prefix.compile import Compiled
from pcdet_freeze.freezing.prefix.empty_space import ReachedBlock, ReachedMaps
from pcdet_freeze.freezing.prefix.fold_bn import Fold
from pcdet_freeze.freezing.prefix.no_grad_call import PrefixCall, float32_rounding
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import Plan
from pcdet_freeze.freezing.prefix.siblings import Siblings
from pcdet_freeze.utils.foreign_code import has_hooks, has_hooks_inside, is_ours


class FastForward:
    """Runs training forwards of ``model`` as ``plan`` says.

    >>> fast = FastForward(model, plan_for(model, (batch,)))
    >>> with fast:
    ...     model(batch)

    Between forwards, and after any exception, KeyboardInterrupt included, the model is as it was.

    Args:
        model: the frozen model; wrappers are seen through.
        plan: see :func:`pcdet_freeze.freezing.prefix.validate.plan_for`; made for what is frozen now.
        options: those that the plan was made with.
        kind: how layers are folded.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, options: Options | None = None, kind: type[Fold] = Fold
    ) -> None:
        self.root, self.plan, self.options = unwrap(model), plan, options or Options()
        modules = {path: module for path, module, _ in walk(self.root)}
        pads, relus = dict(plan.pads), dict(plan.relus)
        self.folds = [
            kind(
                modules[layer],
                modules[norm],
                self.options,
                modules[pads[layer]] if layer in pads else None,
                modules[relus[norm]] if norm in relus else None,
            )
            for layer, norm in plan.folds
        ]
        by_layer = {layer: fold for (layer, _), fold in zip(plan.folds, self.folds, strict=True)}
        self._maps = ReachedMaps()
        self.blocks = {
            path: ReachedBlock(modules[path], [by_layer[layer] for layer in chain], self._maps)
            for path, chain in (plan.reached if kind is Fold else ())
        }
        """path -> the form of a block that computes reached cells only"""
        self._siblings = [Siblings([modules[path] for path in group]) for group in plan.siblings]
        self._quick = [modules[path] for path in plan.quick]
        self._prefix = [modules[path] for path in plan.prefix]
        self._compiled = {modules[path]: self._compile(path, modules[path]) for path in plan.compiled}
        self._replaced: list[tuple[nn.Module, Any]] = []
        """modules whose forward is replaced now, and the forward on the instance before, if any"""
        self._prepared: dict[nn.Module, Any] | None = None
        self._seen = {id(fold): _look(fold) for fold in self.folds}

    def prepare(self) -> FastForward:
        """Choose the forwards for the next ``with`` now, by the hooks that the modules have now."""
        self._restore()
        self._prepared = self._forwards()
        return self

    def __enter__(self) -> FastForward:
        self._restore()  # nothing to do, unless an earlier exit was interrupted
        forwards, self._prepared = self._prepared, None
        try:
            for module, forward in (self._forwards() if forwards is None else forwards).items():
                self._replaced.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = forward
        except BaseException:  # Ctrl-C too: `with` calls no __exit__ for an __enter__ that raised
            self._restore()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._restore()
        self._maps.clear()
        for group in self._siblings:
            group.clear()
        missed = [pair for pair, fold in zip(self.plan.folds, self.folds, strict=True) if fold.clear()]
        if missed and error[0] is None:
            layer, norm = missed[0]
            raise FreezeError(
                f"A frozen module must run the same layers in every step for {norm} to be folded into "
                f"{layer}, but in this step {norm} or its ReLU did not run after it. Set MODEL.FREEZE.FUSE: "
                "False."
            )

    def _restore(self) -> None:
        """Give every module its own forward back; where this is interrupted, the next call goes on."""
        while self._replaced:
            module, own = self._replaced[-1]
            module.__dict__.pop("forward", None)
            if own is not None:  # this module had a forward of its own on the instance
                module.__dict__["forward"] = own
            self._replaced.pop()

    @property
    def plain_calls(self) -> int:
        """Calls of compiled modules that ran without the compiled code."""
        return sum(compiled.plain_calls for compiled in self._compiled.values())

    def _forwards(self) -> dict[nn.Module, Any]:
        """Module -> the forward that replaces its own."""
        found: dict[nn.Module, Any] = {}
        if can_fold_now(self.root, self.options):
            for fold in self.folds:
                if _look(fold) == self._seen[id(fold)]:
                    found.update(fold.forwards())
            for block in self.blocks.values():
                looks = all(_look(fold) == self._seen[id(fold)] for fold in block.folds)
                own = not is_ours(vars(block.block).get("forward", is_ours))
                if looks and not own and not any(map(has_hooks, block.block.children())):
                    found[block.block] = block
        for group in self._siblings:
            found.update(group.forwards())
        quick = (module for module in self._quick if not has_hooks_inside(module))
        forms = ((module, self.options.quick_form(module)) for module in quick)
        found.update({module: form for module, form in forms if form is not None})
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
        return Compiled(module, inside, self.options.compile == "graphs")


def _look(fold: Fold) -> tuple[Any, ...]:
    """A value that changes where one of the layers gets a hook, a parametrization or another class."""
    return tuple((type(module), has_hooks(module)) for module in fold.modules)


def can_fold_now(model: nn.Module, options: Options) -> bool:
    """Whether norm layers may be folded now: in float32, TF32 included, or with ``FUSE: force``."""
    return options.fuse == "force" or not options.is_exact or float32_rounding(model) is not None


class ScopedForward:
    """Stands in for the forward of ``module``, so that a pre-hook can choose a context for each forward.

    torch calls forward hooks after an Exception only, so a pair of hooks cannot leave a context after
    KeyboardInterrupt. After any exception the stand-in removes itself; copies and pickles of the module have
    the module's own forward.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self._own = module, module.__dict__.get("forward")
        self._next: AbstractContextManager[Any] | None = None
        module.__dict__["forward"] = self

    @property
    def is_installed(self) -> bool:
        """Whether the module still calls this object."""
        return self.module.__dict__.get("forward") is self

    def run_next_in(self, context: AbstractContextManager[Any]) -> None:
        """Run the forward that is about to begin inside ``context``, if it is a training forward."""
        self._next = context

    def remove(self) -> None:
        """Give the module its own forward back."""
        if not self.is_installed:
            return
        if self._own is None:
            del self.module.__dict__["forward"]
        else:
            self.module.__dict__["forward"] = self._own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        context, self._next = self._next, None
        forward = _own_forward(self.module, self._own)
        try:
            # a context may be left from a forward that was interrupted before it began
            with context if context is not None and self.module.training else nullcontext():
                return forward(*args, **kwargs)
        except BaseException:
            self.remove()
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return _own_forward, (self.module, self._own)


def _own_forward(module: nn.Module, own: Any) -> Any:
    return type(module).forward.__get__(module) if own is None else own
