"""Take the tensors out of a ``torch.save`` file; run as a process of its own by :mod:`models.convert.source`.

    python -P torch_child.py SOURCE FOLDER CPU_SECONDS MEMORY_BYTES

Writes ``FOLDER/report.json`` and, where there is no ``error`` in it, ``FOLDER/tensors.safetensors``. The file is
hostile:

- torch's restricted unpickler makes tensors and plain values only. The one other name it may meet is
  ``argparse.Namespace`` (the published code saves its command line), and in its place stands a class that forgets all.
- Tensors are mapped, not read; what they claim to hold must lie in the file, so a declared terabyte is only a number.
- Memory, processor time and the size of what is written are limited by the kernel before the file is opened.

It imports nothing of netcls, so that it starts fast and can be read alone.
"""

from __future__ import annotations

import json
import resource
import sys
import zipfile
from pathlib import Path
from typing import Any, Final

MAX_RECORDS: Final = 10_000  # netFound large has 600 tensors and two Adam moments of each
MAX_NAMED: Final = 50
MAX_NAME: Final = 200

MODEL_KEY: Final = "model"  # as in models.convert.source


class Refused(Exception):  # noqa: N818 - the answer of this process, no defect
    """What is wrong with the file, in the words that the operator reads."""


class ForgottenNamespace:
    """Stands for ``argparse.Namespace`` and keeps nothing of it."""

    def __setstate__(self, state: object) -> None:
        pass


def main(arguments: list[str]) -> int:
    """Read ``SOURCE``, write the answer into ``FOLDER``."""
    source, folder = Path(arguments[0]), Path(arguments[1])
    try:
        limit(int(arguments[2]), int(arguments[3]), source.stat().st_size)
        tensors, dropped = read_tensors(source)
        write(tensors, folder / "tensors.safetensors")
        report: dict[str, Any] = {"dropped": dropped}
    except Refused as error:
        report = {"error": str(error)}
    except MemoryError:
        report = {
            "error": "reading it needs more memory than its size allows; the file is damaged or hostile"
        }
    (folder / "report.json").write_text(json.dumps(report))
    return 0


def limit(cpu_s: int, memory_bytes: int, source_bytes: int) -> None:
    """Let the kernel end this process before it takes more than the file is worth.

    Args:
        cpu_s: of processor time.
        memory_bytes: of address space, beyond what torch takes by itself.
        source_bytes: size of the file; neither file that is written can be much larger.
    """
    import torch
    from safetensors.torch import save_file  # noqa: F401 - its pages count as torch's

    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: source_bytes + (1 << 20),
        resource.RLIMIT_CORE: 0,
    }
    for what, most in limits.items():
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def read_tensors(source: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The model's tensors by name, and what else the file holds.

    Raises:
        Refused: if the file holds anything that is not asked for.
    """
    check_archive(source)
    value = load(source)
    if not isinstance(value, dict):
        raise Refused(f"got an object of type {type(value).__name__}, expected a state dict")
    model, dropped = value, []
    if isinstance(value.get(MODEL_KEY), dict):
        model = value[MODEL_KEY]
        others = [(key, item) for key, item in value.items() if key != MODEL_KEY]
        dropped = [{"name": str(key)[:MAX_NAME], "what": kind_of(item)} for key, item in others[:MAX_NAMED]]
    return checked(model, source.stat().st_size), dropped


def check_archive(source: Path) -> None:
    """``torch.save`` stores without compressing; an archive that does compress may hold any number of zeros.

    Raises:
        Refused: for a compressed, cut off or absurd archive.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise Refused(f"got an archive that cannot be read ({error}); it is cut off or damaged") from None
    if len(records) > MAX_RECORDS:
        raise Refused(f"got {len(records)} records, expected at most {MAX_RECORDS}")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED:
            raise Refused("got a compressed archive, expected one that torch.save wrote")


def load(source: Path) -> Any:
    """What the file's restricted pickle describes, tensors mapped.

    Raises:
        Refused: naming the class or function that is not allowed, or the damage.
    """
    import torch

    try:
        with torch.serialization.safe_globals([(ForgottenNamespace, "argparse.Namespace")]):
            return torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a hostile pickle makes of torch's reader
        names = forbidden_names(source)
        if names:
            raise Refused(
                f"it names {', '.join(names)}; nothing but tensors, plain values and argparse.Namespace is read, "
                "and no code is run; ask for the model's state dict alone, or for safetensors"
            ) from None
        first_line = (str(error).splitlines() or [""])[0]
        raise Refused(
            f"torch cannot read it ({type(error).__name__}: {first_line[:300]}); it is damaged"
        ) from None


def forbidden_names(source: Path) -> list[str]:
    """Classes and functions in the pickle that are not allowed; none where it cannot be told."""
    import torch

    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(source)
    except Exception:  # the damage that load() met
        return []
    found = sorted({name[:MAX_NAME] for name in names} - {"argparse.Namespace"})
    return found[:3] + ["..."] * (len(found) > 3)


def checked(model: dict[Any, Any], source_bytes: int) -> dict[str, Any]:
    """Plain dense tensors under names, whose bytes all lie in the file.

    Raises:
        Refused: naming the first that is not.
    """
    import torch

    total_bytes = 0
    for name, tensor in model.items():
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
            raise Refused(
                f"got a tensor called {str(name)[:40]!r}, expected a name of 1 to {MAX_NAME} characters"
            )
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise Refused(f"got {kind_of(tensor)} as {name!r}, expected a tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise Refused(
                f"tensor {name!r}: got a sparse, quantised or empty kind of tensor, expected a plain one"
            )
        total_bytes += tensor.numel() * tensor.element_size()
        if total_bytes > source_bytes:
            raise Refused(
                f"tensor {name!r} of shape {list(tensor.shape)[:8]}: the tensors claim {total_bytes} bytes, the file "
                f"has {source_bytes}; it is damaged or hostile"
            )
    if not model:
        raise Refused("got no tensor, expected a state dict")
    return model


def kind_of(value: Any) -> str:
    """Its type, for a table."""
    return "argparse.Namespace" if isinstance(value, ForgottenNamespace) else type(value).__name__[:MAX_NAME]


def write(tensors: dict[str, Any], target: Path) -> None:
    """Write them as safetensors.

    Raises:
        Refused: where a dtype is not known there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, target)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise Refused(f"its tensors cannot be taken out ({str(error)[:300]})") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
