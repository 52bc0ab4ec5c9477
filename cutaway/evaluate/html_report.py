"""The HTML page that a report is written in: one file, light and dark, as wide as the screen."""

import html

STYLE = """:root{color-scheme:light dark}
body{font:15px/1.5 system-ui;margin:2rem auto;max-width:90rem;padding:0 1rem;overflow-wrap:anywhere}
table{border-collapse:collapse}
td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top;font-variant-numeric:tabular-nums}
pre{overflow-x:auto}"""


def document(title: str, body: str, style: str = "") -> str:
    """The page of a body, which is HTML, under its title; ``style`` is CSS of its own."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style>"
        f"<h1>{html.escape(title)}</h1>{body}</html>"
    )
