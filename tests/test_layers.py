"""The structure that the design promises: imports point down, and the package root is a list."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvhdx

SOURCE = Path(pyvhdx.__file__).parent
# From the bottom up; a module may import its own layer and those before it, but format and storage
# do not know each other.
LAYERS = [
    "_version",
    "_types",
    "errors",
    "format",
    "storage",
    "_core",
    "info",
    "session",
    "writing",
    "reading",
    "user_metadata",
    "image",
    "chain",
    "ops",
    "testing",
    "cli",
    "__main__",
]


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pyvhdx."):
            yield node.module.split(".")[1]


def _modules() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    layer = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    below = LAYERS[: LAYERS.index(layer) + 1]
    if layer == "storage":
        below.remove("format")
    assert set(_imports(path)) <= set(below)


@pytest.mark.parametrize("folder", ["format", "_core"])
def test_the_format_does_no_io(folder: str) -> None:
    for path in sorted((SOURCE / folder).rglob("*.py")):
        called = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "open" not in called, path
        assert not imported & {"os", "io", "socket", "mmap"}, path


def test_only_these_functions_write_to_a_file() -> None:
    """New files are written in bulk, existing ones through the log, or restored; nothing else writes at all."""
    writers = {
        f"{path.relative_to(SOURCE)}:{function.name}"
        for path in _modules()
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and node.attr in ("write_at", "truncate", "write_payload", "write_metadata", "grow", "cut")
        and function.name != node.attr
        and path.parent.name != "storage"
        and path.name != "testing.py"
    }
    assert writers == {
        "_core/log_writer.py:_append",
        "_core/log_writer.py:_update_header",
        "_core/log_writer.py:_write_zeros",
        "_core/log_writer.py:close",
        "_core/log_writer.py:commit",
        "_core/log_writer.py:replay",
        "_core/repairs/mender.py:_renumber",
        "_core/repairs/mender.py:lengthen",
        "_core/repairs/mender.py:write_unlogged",
        "session.py:_grow",
        "session.py:begin",
        "writing.py:_write_block",
        "writing.py:_write_zeros",
        "writing.py:pwrite",
        "cli/meta.py:_get",
        "cli/read.py:run",
        "ops/build.py:__init__",
        "ops/build.py:finish",
        "ops/build.py:write",
        "ops/convert.py:_write_raw",
        "ops/convert.py:write_target",
        "ops/create.py:create",
        "ops/undo.py:fill",
        "ops/undo.py:finish",
        "ops/undo.py:restore",
        "ops/undo.py:undo_unfinished",
        "ops/undo.py:write_undo",
    }


def test_the_package_root_is_a_list() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    assert all(isinstance(node, (ast.Expr, ast.ImportFrom, ast.Assign)) for node in tree.body)
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(pyvhdx.__all__) == imported
    assert pyvhdx.__all__ == sorted(pyvhdx.__all__)


def test_every_error_is_exported() -> None:
    from pyvhdx import errors  # noqa: PLC0415

    assert set(errors.__all__) <= set(pyvhdx.__all__)
