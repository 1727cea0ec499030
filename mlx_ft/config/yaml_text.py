"""Configurations as YAML that OmegaConf reads as what they were."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

# Floats to OmegaConf, as in YAML 1.2, but not to PyYAML, which asks for a point and for the
# exponent's sign, and would write such texts without quotes.
FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")


class _Dumper(yaml.SafeDumper):
    """Quotes texts that look like such floats."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789"))


def dump(values: Mapping[str, Any]) -> str:
    """`values`, in their order, one to a line."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
