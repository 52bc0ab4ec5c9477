"""Energy of the processor's packages by RAPL, where Linux shows its counters (often to root alone)."""

from __future__ import annotations

from pathlib import Path

ZONES = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:[0-9]*"


class Meter:
    """Joules since the meter was made or last read; None where no counter can be read."""

    def __init__(self, zones: Path = ZONES) -> None:
        packages = [zone for zone in sorted(zones.glob(PACKAGES)) if zone.name.count(":") == 1]
        self.counters = [zone for zone in packages if _number(zone / "energy_uj") is not None]
        self.last = self._read()

    def read(self) -> float | None:
        """Joules since the last reading of all packages; a counter that began again is continued."""
        if not self.counters:
            return None
        now, joules = self._read(), 0.0
        for zone, before, after in zip(self.counters, self.last, now, strict=True):
            if after < before:
                after += _number(zone / "max_energy_range_uj") or 0.0
            joules += max(0.0, after - before) / 1e6
        self.last = now
        return joules

    def _read(self) -> list[float]:
        return [_number(zone / "energy_uj") or 0.0 for zone in self.counters]


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
