"""``EasyDict``, from the package of that name, or an equal one where it is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from easydict import EasyDict as EasyDict
else:
    try:
        from easydict import EasyDict as EasyDict
    except ModuleNotFoundError:

        class EasyDict(dict):
            """A dict whose keys are attributes too; dicts in it become EasyDicts, also those in lists."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__()
                self.update(*args, **kwargs)

            def __setitem__(self, key: Any, value: Any) -> None:
                super().__setitem__(key, _converted(value))

            def __setattr__(self, name: str, value: Any) -> None:
                self[name] = value

            def __getattr__(self, name: str) -> Any:
                try:
                    return self[name]
                except KeyError:
                    raise AttributeError(name) from None

            def __delattr__(self, name: str) -> None:
                del self[name]

            def update(self, *args: Any, **kwargs: Any) -> None:
                for key, value in dict(*args, **kwargs).items():
                    self[key] = value

            def setdefault(self, key: Any, default: Any = None) -> Any:
                if key not in self:
                    self[key] = default
                return self[key]


def _converted(value: Any) -> Any:
    if isinstance(value, dict) and not isinstance(value, EasyDict):
        return EasyDict(value)
    if isinstance(value, list | tuple):
        return type(value)(_converted(item) for item in value)
    return value
