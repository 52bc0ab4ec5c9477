"""`cutaway graph`: which parts of a model made its next token, and through which others."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cutaway.commands import plots
from cutaway.commands.console import doing, note, on_screen, print_json, use_threads, watched, wrote
from cutaway.commands.explain_asked import load_model
from cutaway.commands.generate import prompt_text
from cutaway.commands.options import Flag, Force, Html, Json, Model, Open, Threads
from cutaway.errors import UserError, plural
from cutaway.store import files
from cutaway.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from cutaway.inspect.graph.attribution_graph import Graph
    from cutaway.inspect.sae import SAE

SHOWN = 12  # nodes in a terminal


def graph(
    text: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    file: Path | None = None,
    model: Model = "smollm2",
    target: str | None = None,
    features: Path | None = None,
    neurons: int | None = None,
    nodes: float = 0.8,
    edges: float = 0.98,
    least: float = 0.0002,
    groups: Path | None = None,
    check: Flag = False,
    html: Html = None,
    svg: Path | None = None,
    force: Force = False,
    open_page: Open = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Draw an attribution graph: which embeddings, heads, MLPs and neurons made a text's next token.

    Attention weights and norms' sizes are frozen, so what a part reads is a sum over what earlier parts
    wrote: the edges. With --features a transcoder's features take the place of MLPs, and heads are no nodes.

    **Examples:**

    cutaway graph "The capital of France is"

    cutaway graph "The capital of France is" --html france.html --open

    cutaway graph "The capital of France is" --target " Paris" --json > france.json

    cutaway graph "The capital of France is" --features transcoders --check --html france.html

    :param text: The text; - reads it from standard input.
    :param file: Read the text from this file (without its last newline).
    :param target: The one token whose logit is asked about; else the likeliest up to 95%.
    :param features: A folder of transcoders that `cutaway sae --kind transcoder` wrote.
    :param neurons: So many neurons are nodes of their own; 40 by default, none with --features.
    :param nodes: Keep the nodes that have this part of the influence on the logits.
    :param edges: Then the edges that have this part.
    :param least: Leave out nodes with less influence than this before that; less finds more, in more time.
    :param groups: A JSON file exported from a graph's page: its groups are drawn, and measured by --check.
    :param check: Run the model with each node ablated, and show the true change of the logits.
    :param svg: Write a drawing to this file.
    """
    shown = prompt_text(text, file)
    use_threads(threads)
    _check(nodes, edges, least, html, svg, force)
    from cutaway.inspect.graph import build, drawn, exported, page
    from cutaway.inspect.sae_folders import with_folders

    named = [] if groups is None else exported.read_groups(groups)
    found = [] if features is None else with_folders(features)
    lm = load_model(model)
    with doing("Reading the text"):
        ids = lm.ids(shown)
    dictionaries = [one for one, _ in found]
    with watched() as progress:
        made = build.attribution_graph(
            lm, ids, target, features=dictionaries, neurons=neurons, least=least, progress=progress
        )
    _note(made)
    made = replace(_labelled(made, found), model=model, groups=named)
    if groups is not None:
        exported.check_groups(made, named, groups)
    kept = made.pruned(nodes, edges)
    checked: dict[str, Any] = {}
    if check:
        with watched() as progress:
            checked = page.check(lm, made, kept, progress)
    document = exported.to_json(kept, nodes, edges, __version__) | ({"checked": checked} if checked else {})
    if svg is not None:
        files.write_file(svg, drawn.svg(kept), force=force)
        wrote(svg)
    if html is not None or open_page:
        plots.write_page(page.page(lm, made, kept, checked, document), html, "graph.html", open_page)
    if as_json:
        print_json(document)
    elif html is None and svg is None and not open_page:
        on_screen(partial(_show, made, kept, page.promoted(lm, kept), checked))


def _check(
    nodes: float, edges: float, least: float, html: Path | None, svg: Path | None, force: bool
) -> None:
    """UserError for what cannot be written or kept, before any work."""
    for target in filter(None, (html, svg)):
        files.check_file(target, force)
    for name, part in (("--nodes", nodes), ("--edges", edges)):
        if not 0 < part <= 1:
            raise UserError(f"{name} is {part}: give a part of the influence, above 0 and at most 1")
    if not 0 < least < 1:
        raise UserError(f"--least is {least}: give a part of the influence, above 0 and below 1")
    if svg is not None and svg.suffix.lower() not in ("", ".svg"):
        raise UserError(f"--svg {svg}: the drawing is SVG: give a name that ends in .svg")


def _labelled(made: Graph, found: list[tuple[SAE, Path | None]]) -> Graph:
    """The graph with the labels that the user gave features after their names."""
    from cutaway.inspect.features import labels

    own = {
        (one.layer, feature): text
        for one, folder in found
        if folder is not None
        for feature, text in labels(folder, one).items()
    }
    nodes = [
        node._replace(label=f"{node.name}: {own[node.layer, node.index]}")
        if node.kind == "feature" and (node.layer, node.index) in own
        else node
        for node in made.nodes
    ]
    return replace(made, nodes=nodes)


def _note(made: Graph) -> None:
    """Asks whether the token with a space was meant, where that one is far likelier."""
    if likelier := made.facts["likelier"]:
        (target, plain), (spaced, other) = likelier.items()
        note(f"{target!r} has {plain:.2%} and {spaced!r} {other:.0%}: did you mean --target {spaced!r}?")


def _show(made: Graph, kept: Graph, promotes: Any, checked: dict[str, Any], console: Console) -> None:
    """The strongest nodes, and what the graph explains."""
    from rich.table import Table
    from rich.text import Text

    likely = [f"{kept.nodes[n].name} {kept.nodes[n].probability:.0%}" for n in kept.logits]
    console.print(Text(f"Attribution graph of {kept.prompt!r}", "bold"))
    for line in _wrapped("logits: ", likely, console.width):
        console.print(Text(line), no_wrap=True, overflow="ignore", crop=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name, side in (("node", "left"), ("token", "left"), ("influence", "right"), ("promotes", "left")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    if checked:
        table.add_column("ablated", justify="right")
    order = sorted(range(len(kept.nodes)), key=lambda n: -kept.influence[n])
    for n in [n for n in order if kept.nodes[n].kind not in ("embedding", "logit")][:SHOWN]:
        node = kept.nodes[n]
        row = [node.name, repr(kept.tokens[node.position]), f"{kept.influence[n]:.3f}"]
        row.append(", ".join(map(repr, promotes[n][:3])))
        if checked:
            row.append(f"{checked['nodes'][node.id][0]:+.2f}" if node.id in checked["nodes"] else "")
        table.add_row(*map(Text, row))
    console.print(table)
    for line in _groups(kept, checked):
        console.print(Text(line))
    facts = kept.facts
    lines = (
        f"{len(kept.nodes)} of {len(made.nodes)} nodes, {len(kept.edges()):,} edges. Of the influence that ",
        f"reaches an end, {facts['replacement']:.0%} reaches embeddings (replacement score). The graph has ",
        f"{facts['completeness']:.0%} of what its nodes read (completeness).",
    )
    console.print(Text("".join(lines)))
    for line in _left_out(made, kept):
        console.print(Text(line))
    console.print(Text("--html FILE draws it, --json prints it in Neuronpedia's schema", "bright_black"))


def _wrapped(start: str, items: list[str], width: int) -> list[str]:
    """Lines of items that break between items alone: a token may begin with a space."""
    lines = [start]
    for n, item in enumerate(items):
        item += "," if n < len(items) - 1 else ""
        if n and len(lines[-1]) + 1 + len(item) > width:
            lines.append("  " + item)
        else:
            lines[-1] += (" " if n else "") + item
    return lines


def _groups(kept: Graph, checked: dict[str, Any]) -> list[str]:
    """A line a group: its size, and how logits changed at multiples of its value, if measured."""
    names = [kept.nodes[n].name for n in kept.logits[:3]]
    lines = []
    for name, members in kept.groups:
        line = f"group {name!r}, {plural(len(members), 'node')}"
        for times, changes in checked.get("groups", {}).get(name, {}).items():
            shown = ", ".join(f"{one} {by:+.2f}" for one, by in zip(names, changes, strict=False))
            line += f"; at {float(times):g} times its value {shown}"
        lines.append(line)
    return lines


def _left_out(made: Graph, kept: Graph) -> list[str]:
    """What the graph does not have: nodes of little influence, and features that were not kept."""
    facts, lines = made.facts, []
    if count := facts["left_out"]:
        lines.append(
            f"{count:,} nodes with an influence below {facts['least']:g} were left out: "
            f"{facts['left_out_influence']:.1%} of the influence ends at them. --least takes a lower bound."
        )
    every = [node for node in getattr(made.source, "nodes", ()) if node.kind == "feature"]
    if every:
        shown = sum(node.kind == "feature" for node in kept.nodes)
        lines.append(f"{shown:,} of {len(every):,} active features kept; --nodes 0.999 shows more")
    return lines
