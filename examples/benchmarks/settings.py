"""Methods as the benchmarks run them."""

from __future__ import annotations

from hf_sharp import LPF, METHODS, RGSAM, SAM, AbstractMethod, Decayed, During, Every

SETTINGS: dict[str, AbstractMethod] = {
    "decayed": Decayed(SAM(), weight_decay=0.0005),
    "during": During(SAM(), start=0.5),
    "every": Every(2, SAM()),
    "lpf": LPF(gamma=0.001, draws=2),
    "rgsam": RGSAM(rho=0.05, gamma=0.0025, lam=2.0, alpha=0.3),
}
"""Methods that have no defaults; the others run with theirs."""


def method(name: str) -> AbstractMethod:
    """A method as it is measured."""
    return SETTINGS[name] if name in SETTINGS else METHODS[name]()
