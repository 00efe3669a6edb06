"""Griffe extension for the API reference: loads folders without ``__init__.py``, and converts Sphinx markup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

TABLE = re.compile(r"^(?P<indent> *)=+ =+.*?\n(?P<rows>.*?)^ *=+ =+[^\n]*$", re.DOTALL | re.MULTILINE)
ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")
LITERAL_BLOCK = re.compile(r"::$", re.MULTILINE)


class Folders(griffe.Extension):
    """Extension that adds folders without ``__init__.py`` to a package; Griffe itself skips them."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Add the modules of folders to the package."""
        root = Path(str(pkg.filepath)).parent
        for path in sorted(root.rglob("*.py")):
            *folders, name = path.relative_to(root).with_suffix("").parts
            parent: Any = pkg
            for i, folder in enumerate(folders):
                if folder not in parent.members:
                    module = griffe.Module(
                        folder,
                        filepath=[root.joinpath(*folders[: i + 1])],
                        lines_collection=loader.lines_collection,
                        modules_collection=loader.modules_collection,
                    )
                    parent.set_member(folder, module)
                parent = parent.members[folder]
            if name != "__init__" and name not in parent.members:
                module = griffe.visit(
                    name,
                    filepath=path,
                    code=path.read_text(encoding="utf-8"),
                    extensions=loader.extensions,
                    parent=parent,
                    lines_collection=loader.lines_collection,
                    modules_collection=loader.modules_collection,
                )
                parent.set_member(name, module)

    def on_instance(self, *, node: Any, obj: griffe.Object, **kwargs: Any) -> None:
        """Convert the markup of a docstring."""
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            text = TABLE.sub(lambda table: f"```text\n{table['rows'].rstrip()}\n```", text)
            obj.docstring.value = LITERAL_BLOCK.sub(":", text)
