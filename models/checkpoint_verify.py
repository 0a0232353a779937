"""Check a checkpoint's files against the code and against each other: family, config, representation, tensors.

Nothing is believed because it is in the folder: the network is built from the config without memory (torch's ``meta``
device) and says which tensors it has; the representation is built from its settings and says what they are.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import TYPE_CHECKING, Any, Final

from capture.errors import CheckpointError, NetclsError, did_you_mean
from models.checkpoint_files import WEIGHTS_FILE, CheckpointFiles, check_keys

if TYPE_CHECKING:
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    from models.families import Family

# A config may be hostile: building 10^6 layers would take minutes, even without memory.
MAX_LAYERS: Final = 256
MAX_SIZE: Final = 1 << 20


def verify(files: CheckpointFiles) -> dict[str, Tensor]:
    """The weights of a checkpoint, after everything was compared with everything.

    Returns:
        Tensor by name, in the file's dtype and on the CPU, views of the mapped file.

    Raises:
        CheckpointError: naming the first contradiction.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    family = known_family(files.family, str(files.path / "config.json"))
    _verify_representation(files, family)
    config = build_config(family, files.model_config, str(files.path / "config.json"))
    _verify_input_size(files, family, config)
    expected = expected_tensors(
        family, config, files.kind, len(files.labels), str(files.path / "config.json")
    )
    _verify_tensors(files, expected)
    try:
        state = load_file(files.path / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{files.path / WEIGHTS_FILE}: cannot be loaded ({error}); fetch it again"
        ) from None
    _verify_finite(files, state)
    return state


def known_family(name: str, where: str) -> Family:
    """The registered family of that name.

    Raises:
        CheckpointError: with the names that are known.
    """
    from models.families import FAMILIES

    if name not in FAMILIES:
        raise CheckpointError(
            f"{where}: got family {name[:80]!r}{did_you_mean(name, list(FAMILIES))}; "
            f"this netcls knows {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def build_config(family: Family, values: dict[str, Any], where: str) -> Any:
    """The family's configuration object; every field must be given, with a value of its type.

    A field that a family got after its first checkpoints (``may_be_absent`` in its metadata) has its default where it
    is absent.

    Raises:
        CheckpointError: for an unknown or missing field, a wrong type, or sizes that cannot be.
    """
    fields = tuple(field.name for field in dataclasses.fields(family.config_type))
    values = {
        field.name: field.default
        for field in dataclasses.fields(family.config_type)
        if field.metadata.get("may_be_absent")
    } | values
    check_keys(f"{where}: model", values, fields)
    hints = typing.get_type_hints(family.config_type)
    checked: dict[str, Any] = {}
    for name in fields:
        value: Any = tuple(values[name]) if isinstance(values[name], list) else values[name]
        if not _is_of_type(value, hints[name]):
            raise CheckpointError(
                f"{where}: got model.{name} = {values[name]!r:.60}, expected {_type_name(hints[name])}"
            )
        most = MAX_LAYERS if name.endswith("layers") else MAX_SIZE
        if type(value) is int and not -most <= value <= most:
            raise CheckpointError(f"{where}: got model.{name} = {value!r:.60}, expected at most {most}")
        checked[name] = float(value) if hints[name] is float else value
    try:
        return family.config_type(**checked)
    except (NetclsError, ValueError, TypeError) as error:
        raise CheckpointError(f"{where}: model: {error}") from None


def expected_tensors(
    family: Family, config: Any, kind: str, n_labels: int, where: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (safetensors dtype, shape) of every tensor that the network has; no memory is taken.

    Raises:
        CheckpointError: if the network cannot be built from the configuration.
    """
    try:
        with _without_memory():
            if kind == "classifier":
                model = family.build_classifier(config, n_labels)
            else:
                model = family.build_pretrainer(config)
    except (NetclsError, ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{where}: model: no network can be built from these sizes ({first_line})"
        ) from None
    return {name: (_dtype_name(tensor), tuple(tensor.shape)) for name, tensor in model.state_dict().items()}


def _without_memory() -> TorchFunctionMode:
    """A context in which the tensors a network's constructor makes have shapes but no memory (device ``meta``).

    Unlike ``torch.device("meta")`` it leaves ``linspace`` alone: networks read their drop-path rates from one.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    makers = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange}

    class OnMeta(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            # Values of what has no memory; drawing them would import torch's compiler, a second of every start.
            if getattr(func, "__module__", "") == "torch.nn.init":
                return args[0] if args else kwargs["tensor"]
            if func in makers and kwargs.get("device") is None:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    return OnMeta()


def _verify_representation(files: CheckpointFiles, family: Family) -> None:
    """Known, the family's own, of the version the weights were trained with, with exactly its settings."""
    from capture.representations import REPRESENTATIONS, build

    where = f"{files.path / 'config.json'}: representation"
    if files.representation not in REPRESENTATIONS:
        hint = did_you_mean(files.representation, list(REPRESENTATIONS))
        raise CheckpointError(
            f"{where}: got {files.representation[:80]!r}{hint}; this netcls knows {', '.join(REPRESENTATIONS)}"
        )
    if files.representation != family.representation:
        raise CheckpointError(
            f"{where}: got {files.representation!r}, expected {family.representation!r} for family {family.name}"
        )
    try:
        representation = build(files.representation, files.representation_settings)
        settings = representation.settings()
    except (NetclsError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from None
    if representation.version != files.representation_version:
        raise CheckpointError(
            f"{where}: got version {files.representation_version}, expected {representation.version}; "
            "the tokens changed since these weights were trained: train again, or install the netcls that wrote it"
        )
    check_keys(f"{where}.settings", files.representation_settings, tuple(settings))
    for name, value in settings.items():
        if files.representation_settings[name] != value:
            raise CheckpointError(
                f"{where}: got {name} = {files.representation_settings[name]!r:.60}, expected {value!r:.60}"
            )


def _verify_input_size(files: CheckpointFiles, family: Family, config: Any) -> None:
    """What the representation gives must be what the network reads."""
    where = files.path / "config.json"
    sizes = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    try:
        free = {name: value for name, value in sizes.items() if _is_free(family, files, name, value)}
        fitting = family.config_for(files.representation_settings, **free)
    except (NetclsError, ValueError) as error:
        raise CheckpointError(f"{where}: model and representation settings do not fit: {error}") from None
    for name, value in sizes.items():
        if value != getattr(fitting, name):
            raise CheckpointError(
                f"{where}: got model.{name} = {value!r:.60}, expected {getattr(fitting, name)!r} for these "
                "representation settings; weights and settings do not belong together"
            )


def _is_free(family: Family, files: CheckpointFiles, name: str, value: Any) -> bool:
    """Whether a size is free to choose; ``config_for`` takes no value for what the representation decides."""
    try:
        family.config_for(files.representation_settings, **{name: value})
    except TypeError:
        return False
    except (NetclsError, ValueError):  # taken, but it contradicts the defaults of the other sizes
        return True
    return True


def _verify_tensors(files: CheckpointFiles, expected: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Exactly the network's tensors, each of its shape and dtype."""
    where = files.path / WEIGHTS_FILE
    missing = [name for name in expected if name not in files.tensors]
    extra = [name for name in files.tensors if name not in expected]
    if missing or extra:
        raise CheckpointError(
            f"{where}: got {some_of(extra)} unknown and {some_of(missing)} missing tensors, expected the "
            f"{len(expected)} of a {files.family} {files.kind}; weights and config.json do not belong together"
        )
    for name, (dtype, shape) in expected.items():
        entry = files.tensors[name]
        if entry.shape != shape:
            reason = _label_reason(files, name, entry.shape, shape)
            raise CheckpointError(
                f"{where}: tensor {name!r}: got shape {list(entry.shape)}, expected {list(shape)}{reason}"
            )
        if entry.dtype != dtype:
            raise CheckpointError(
                f"{where}: tensor {name!r}: got dtype {entry.dtype}, expected {dtype}; convert it"
            )


def _label_reason(files: CheckpointFiles, name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """The likeliest mistake has its own words."""
    if got[1:] == expected[1:] and expected[:1] == (len(files.labels),) and name.startswith("head"):
        return f"; labels.json has {len(files.labels)} labels, the weights answer {got[0]}"
    return "; weights and config.json do not belong together"


def _verify_finite(files: CheckpointFiles, state: dict[str, Tensor]) -> None:
    """A weight that is not a number would make every answer one label."""
    import torch

    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{files.path / WEIGHTS_FILE}: tensor {name!r}: got NaN or infinity, expected finite weights; "
                "the training diverged or the file is damaged"
            )


def some_of(names: list[str]) -> str:
    """How many names there are, with the first three; ``no`` for none."""
    if not names:
        return "no"
    shown = ", ".join(repr(name[:80]) for name in names[:3])
    return f"{len(names)} ({shown}{', ...' if len(names) > 3 else ''})"


def _dtype_name(tensor: Tensor) -> str:
    """The name that safetensors has for a tensor's dtype."""
    import torch

    return {
        torch.bool: "BOOL",
        torch.uint8: "U8",
        torch.int8: "I8",
        torch.int16: "I16",
        torch.int32: "I32",
        torch.int64: "I64",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float32: "F32",
        torch.float64: "F64",
    }[tensor.dtype]


def _is_of_type(value: Any, hint: Any) -> bool:
    """Whether a JSON value fits a config field's annotation; a bool is never a number."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of_type(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        (part,) = {part for part in typing.get_args(hint) if part is not Ellipsis}
        return isinstance(value, tuple) and all(_is_of_type(item, part) for item in value)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return names.get(hint, str(hint))
