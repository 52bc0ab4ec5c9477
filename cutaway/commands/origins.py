"""A conversation as the template wrote it, each character coloured by where it came from."""

from rich.console import Console
from rich.text import Text

from cutaway.tokenizer.chat.rendering import Rendered

CONTROL, TEMPLATE = "bold cyan", "cyan"
CONTENT = ("default", "green", "yellow", "magenta")  # places take these in turn


def show(rendered: Rendered, screen: Console) -> None:
    """The text with its control tokens marked, and a legend of the places that content came from."""
    places = list(dict.fromkeys(run.source for run in rendered.origins if run.source != "template"))
    style = {place: CONTENT[i % len(CONTENT)] for i, place in enumerate(places)}
    shown = Text()
    for run in rendered.origins:
        shown.append(rendered.text[run.start : run.stop], style.get(run.source, TEMPLATE))
    for start, stop, _ in rendered.control:
        shown.stylize(CONTROL + " reverse", start, stop)
    screen.print("[bold]Conversation[/]  what the model reads, coloured by who wrote it")
    screen.print(shown)
    legend = Text("  ").append(" control token ", CONTROL + " reverse").append("  template", TEMPLATE)
    for place in places:
        legend.append(f"  {place}", style[place])
    screen.print(legend)
    if rendered.steered:
        screen.print("Content changed which control tokens the template wrote.", style="bold red")
    screen.print()
