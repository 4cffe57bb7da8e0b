"""Where a loaded model runs and in which precision: the names that people give → what PyTorch takes.

Below ``encoder``; ``cloc.load``, ``eval.py`` and ``embed`` ask here. Training has Lightning's names of devices
(``trainer.accelerator``, :mod:`cloc.engine.start`), whose ``auto`` takes Apple's GPU too, and Lightning's of precisions
(:mod:`cloc.engine.machine`); what computes bfloat16 it asks here.
"""

from __future__ import annotations

from typing import Self

import torch

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Device = str | int | torch.device
DType = str | torch.dtype


def find_device(name: Device = AUTO) -> torch.device:
    """A device that this machine has.

    Args:
        name: ``auto`` (a CUDA GPU where there is one, else the CPU) or PyTorch's name, such as ``cpu`` or ``cuda:1``.

    Raises:
        ValueError: no name of a device, or of one that is not here.
    """
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    choices = _either([AUTO, "cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={str(name)!r}: PyTorch knows no such device; give {choices}") from error
    try:
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"device={str(name)!r} cannot be used on this machine ({reason}); give {choices}") from error
    return device


def find_dtype(name: DType, device: torch.device) -> torch.dtype:
    """A precision that a model can be used in.

    Args:
        name: ``float32``, ``bfloat16``, ``float16``, PyTorch's own, or ``auto``: bfloat16 where the device computes it,
            else float32.
        device: where the model is to run.

    Raises:
        ValueError: another name.
    """
    if name == AUTO:
        return torch.bfloat16 if computes_bfloat16(device) else torch.float32
    found = DTYPES.get(name) if isinstance(name, str) else name
    if found is None or found not in DTYPES.values():
        raise ValueError(f"dtype={str(name)!r}: give {_either([AUTO, *DTYPES])}, or PyTorch's own for one of these")
    return found


def measuring_dtype(name: DType, device: torch.device) -> torch.dtype:
    """The precision that a model is measured in: as :func:`find_dtype`, but ``auto`` is bfloat16 on GPUs alone.

    So that a CPU gives the same numbers whatever it computes fast; what was measured in says so (``metrics.json``).

    Raises:
        ValueError: another name.
    """
    if isinstance(name, str) and name not in (AUTO, *DTYPES):
        raise ValueError(f"precision={name!r}: give {_either([AUTO, *DTYPES])}")
    return torch.float32 if name == AUTO and device.type != "cuda" else find_dtype(name, device)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device computes bfloat16 rather than imitating it.

    A processor that only imitates it multiplies matrices 40 times slower than in float32 (an AMD EPYC with AVX2).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def split_target(device: Device | torch.dtype | None, dtype: DType | None) -> tuple[Device | None, DType | None]:
    """What ``to`` was given, whose first argument may be either: a device and a precision, None where not given."""
    if dtype is None and (isinstance(device, torch.dtype) or (isinstance(device, str) and device in DTYPES)):
        return None, device
    if isinstance(device, torch.dtype):
        raise ValueError(f"device={device}, dtype={dtype}: give the device first, or one precision alone")
    return device, dtype


class Placed:
    """Methods by which PyTorch's modules are moved; each returns the object itself."""

    def to(self, device: Device | torch.dtype | None = None, dtype: DType | None = None) -> Self:
        """Move to a device, change the precision, or both.

        Args:
            device: as :func:`find_device`; a precision alone may stand here too, as in ``to("bfloat16")``.
            dtype: as :func:`find_dtype`.

        Raises:
            ValueError: a device that is not here, or a precision that is not one of these.
        """
        raise NotImplementedError

    def half(self) -> Self:
        """Use float16."""
        return self.to(dtype=torch.float16)

    def bfloat16(self) -> Self:
        """Use bfloat16."""
        return self.to(dtype=torch.bfloat16)

    def float(self) -> Self:
        """Use float32. What half precision has rounded stays rounded."""
        return self.to(dtype=torch.float32)

    def cpu(self) -> Self:
        """Move to the CPU."""
        return self.to("cpu")

    def cuda(self, device: int | torch.device | None = None) -> Self:
        """Move to a GPU: the current one unless another is given."""
        return self.to("cuda" if device is None else device)


def _either(choices: list[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"
