"""The YAML files there are to choose from: ours and those of --config-dir."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Groups:
    """The folders that are searched for YAML files, in order: the first one wins."""

    folders: tuple[Path, ...]

    def names(self) -> list[str]:
        """The groups: every folder that holds a YAML file, except Hydra's own."""
        found = {path.parent.name for folder in self.folders for path in folder.glob("*/*.yaml")}
        return sorted(found - {"hydra"})

    def options(self, group: str) -> list[str]:
        """What there is to choose in a group, or in `""` the primary configs."""
        return sorted({path.stem for folder in self.folders
                       for path in (folder / group).glob("*.yaml")})  # fmt: skip

    def find(self, name: str) -> Path | None:
        """The file of `group/choice`, or of a primary config."""
        for folder in self.folders:
            path = folder / (name if name.endswith(".yaml") else f"{name}.yaml")
            with suppress(OSError, ValueError):  # no name of a file at all
                if path.is_file():
                    return path
        return None

    def listed(self, primary: str, seen: frozenset[str] = frozenset()) -> set[str]:
        """The groups in the defaults lists of a primary config and of those it builds on.

        A run's `config.yaml` has none.
        """
        path = self.find(primary)
        try:
            content = yaml.safe_load(path.read_bytes()) if path else None
        except (OSError, UnicodeError, yaml.YAMLError):
            return set()  # composition says what is wrong with it
        entries = content.get("defaults") if isinstance(content, dict) else None
        found: set[str] = set()
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict):
                found |= {str(key).split()[-1].lstrip("/") for key in entry}
            elif isinstance(entry, str) and entry not in seen | {"_self_", primary}:
                found |= self.listed(entry.lstrip("/"), seen | {primary})
        return found
