"""What a page has in its block of data."""

import base64
import json
import re
import zlib
from typing import Any


def charts(document: str) -> list[dict[str, Any]]:
    """The charts of a report, as the browser gets them."""
    block = re.search(r'id="data">([^<]*)</script>', document)
    assert block is not None
    return json.loads(zlib.decompress(base64.b64decode(block[1])))
