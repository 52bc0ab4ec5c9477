"""Options that several verbs have: a switch without its negation, and `--json`."""

from typing import Annotated

from cyclopts import Parameter

Flag = Annotated[bool, Parameter(negative=())]
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON document.", negative=())]
