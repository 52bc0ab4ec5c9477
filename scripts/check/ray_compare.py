"""A comparison on a local Ray gives the table of one process; a few minutes.

Not among the tests, because starting Ray alone takes longer than any of them. Where other work fills the
machine, set RAY_worker_niceness=0: Ray's workers wait for every other process otherwise.
"""

import json
import tempfile
from pathlib import Path

from cutaway.compare import arms, report, sweep
from cutaway.compare.tasks import copying
from scripts.check.kill_and_resume import table


def main() -> None:
    """Prints the table, after comparing three ways to it."""
    import ray

    settings = {"steps": 20, "trial_steps": 10, "batch_size": 16, "seeds": 2, "test": 32}
    settings |= {"learning_rates": (0.01,)}
    made = arms.preset(copying.Config(6, 8), {"attention": ["mha", "linear"]}, width=16, **settings)
    found = {}
    with tempfile.TemporaryDirectory() as home:
        ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
        for name, how in {"alone": {}, "processes": {"workers": 2}, "Ray": {"ray": True}}.items():
            folder = Path(home) / name
            results = sweep.run_sweep(made, folder, lambda what: None, **how)
            found[name] = table(report.save(made, results, folder))
            print(name, "is done", flush=True)
        print((folder / "report.md").read_text())
        ray.shutdown()
    assert len(set(found.values())) == 1, json.dumps(found)
    print(f"{', '.join(found)}: the same table")


if __name__ == "__main__":
    main()
