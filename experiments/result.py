"""The `--json` flag of tools that end with one object: `bench` and `plan`."""

import json
from typing import Any

from absl import flags

JSON = flags.DEFINE_string("json", None, "File for the result, one JSON object.")


def keep(found: Any) -> None:
    """Writes the object to the flag's file, where one is named."""
    if JSON.value:
        with open(JSON.value, "w", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
