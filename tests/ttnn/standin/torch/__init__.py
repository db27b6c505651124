"""Stands in for torch, of which ttnn only asks whether a value is one of its tensors."""


class Tensor:
    pass


class dtype:  # noqa: N801
    pass


class nn:  # noqa: N801
    class Module:
        pass


def __getattr__(name: str) -> str:
    if name.startswith("__"):
        raise AttributeError(name)
    return name
