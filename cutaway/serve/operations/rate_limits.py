"""What a response's headers tell of its key's quotas, under OpenAI's names or Anthropic's.

OpenAI: x-ratelimit-limit-requests, -remaining-requests, -reset-requests ("1m30s" until the quota is whole
again), and the same of tokens. Anthropic: anthropic-ratelimit-requests-limit, -remaining, -reset (when it is
whole again, by RFC 3339), and the same of tokens. Tokens are counted at an answer's end, so these do not know
of the answer that they come with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from cutaway.serve.operations.api_keys import Tenant


def headers(tenant: Tenant, anthropic: bool) -> Mapping[str, str]:
    """The headers of a tenant's quotas, of which it may have none."""
    found: dict[str, str] = {}
    for name, bucket in (("requests", tenant.requests), ("tokens", tenant.tokens)):
        if bucket.limit is None:
            continue
        level = bucket.now()
        left, seconds = max(0, math.floor(bucket.limit - level)), level / bucket.flow
        if anthropic:
            whole = datetime.now(UTC) + timedelta(seconds=math.ceil(seconds))
            values = {"limit": str(bucket.limit), "remaining": str(left)}
            values["reset"] = whole.strftime("%Y-%m-%dT%H:%M:%SZ")
            found |= {f"anthropic-ratelimit-{name}-{what}": value for what, value in values.items()}
        else:
            values = {"limit": str(bucket.limit), "remaining": str(left), "reset": _duration(seconds)}
            found |= {f"x-ratelimit-{what}-{name}": value for what, value in values.items()}
    return found


def _duration(seconds: float) -> str:
    """A duration as OpenAI writes it: 120ms, 7s, 1m30s."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
