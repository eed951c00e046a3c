"""varflow: the variance of signal and gradient through any network at initialization.

Derive the law of every node in closed form, solve for the initialization that preserves the signal, verify
both by simulation, export the derivation.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varflow.composition import LAYER, chain, residual, sequence
    from varflow.criticality import Criticality, criticality
    from varflow.depthmap import NetworkMap, network_map
    from varflow.derive import Derivation, NodeLaw, WeightLaw, derive
    from varflow.errors import VarflowError
    from varflow.export import explain, export
    from varflow.gain import ActivationGain, gain
    from varflow.load import load, save
    from varflow.network import Handle, Network
    from varflow.replay import Replay, replay
    from varflow.solve import Solution, solve
    from varflow.spectrum import JacobianSpectrum, jacobian_spectrum
    from varflow.tailor import Normalization, normalize
    from varflow.verify import verify
    from varflow.verify_report import Verification

__version__ = "0.1.0"
_PUBLIC = {
    "Derivation": "derive", "NodeLaw": "derive", "WeightLaw": "derive", "derive": "derive",
    "VarflowError": "errors", "Handle": "network", "Network": "network", "Solution": "solve", "solve": "solve",
    "Verification": "verify", "verify": "verify", "export": "export", "explain": "export", "load": "load",
    "save": "load", "replay": "replay", "Replay": "replay", "gain": "gain", "ActivationGain": "gain",
    "criticality": "criticality", "Criticality": "criticality", "normalize": "tailor", "Normalization": "tailor",
    "network_map": "depthmap", "NetworkMap": "depthmap", "jacobian_spectrum": "spectrum",
    "JacobianSpectrum": "spectrum", "LAYER": "composition", "chain": "composition", "residual": "composition",
    "sequence": "composition",
}
__all__ = [
    "LAYER", "ActivationGain", "Criticality", "Derivation", "Handle", "JacobianSpectrum", "Network",
    "NetworkMap", "NodeLaw", "Normalization", "Replay", "Solution", "VarflowError", "Verification", "WeightLaw",
    "chain", "criticality", "derive", "explain", "export", "gain", "jacobian_spectrum", "load", "network_map",
    "normalize", "replay", "residual", "save", "sequence", "solve", "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'varflow' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"varflow.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps public functions in place when their modules, of the same name, are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        own = isinstance(value, ModuleType) and _PUBLIC.get(name) == name
        super().__setattr__(name, getattr(value, name) if own else value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
