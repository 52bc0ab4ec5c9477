"""Two-hop questions whose middle term is not in their text: (prompt, middle, answer, kind).

Questions of one kind have one form, so that the middle terms of two of them can be exchanged.
"""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """A prompt, the words that its answer begins with, and the term in between."""

    prompt: str
    middle: str
    answers: tuple[str, ...]
    kind: str


LANGUAGES = (  # capital, country, language
    "Paris France French; Rome Italy Italian; Berlin Germany German; Madrid Spain Spanish; "
    "Lisbon Portugal Portuguese; Moscow Russia Russian; Tokyo Japan Japanese; "
    "Beijing China Chinese|Mandarin; Athens Greece Greek; Warsaw Poland Polish; "
    "Stockholm Sweden Swedish; Oslo Norway Norwegian; "
    "Copenhagen Denmark Danish; Helsinki Finland Finnish; Budapest Hungary Hungarian; Seoul Korea Korean; "
    "Hanoi Vietnam Vietnamese; Bangkok Thailand Thai; Ankara Turkey Turkish; Cairo Egypt Arabic|Egyptian; "
    "Tehran Iran Persian|Farsi; Bucharest Romania Romanian; Kiev Ukraine Ukrainian; Vienna Austria German; "
    "Havana Cuba Spanish; Lima Peru Spanish; Kabul Afghanistan Pashto|Dari; Baghdad Iraq Arabic; "
    "London England English; Dublin Ireland English|Irish"
)
PLACES = (  # place, country, language
    "the Colosseum,Italy,Italian; the Great Wall,China,Chinese|Mandarin; the Acropolis,Greece,Greek; "
    "Mount Fuji,Japan,Japanese; Stonehenge,England,English; Machu Picchu,Peru,Spanish|Quech; "
    "the Alhambra,Spain,Spanish; Neuschwanstein Castle,Germany,German; Vesuvius,Italy,Italian; "
    "the Black Forest,Germany,German; the Palace of Versailles,France,French; Luxor,Egypt,Arabic|Egyptian; "
    "the Kremlin,Russia,Russian; the Eiffel Tower,France,French; Barcelona,Spain,Spanish|Catalan; "
    "Milan,Italy,Italian; Munich,Germany,German; Osaka,Japan,Japanese; Shanghai,China,Chinese|Mandarin; "
    "Marseille,France,French; Krakow,Poland,Polish; Alexandria,Egypt,Arabic|Egyptian; Naples,Italy,Italian; "
    "Hamburg,Germany,German; Kyoto,Japan,Japanese; Lyon,France,French; Istanbul,Turkey,Turkish; "
    "Manchester,England,English"
)
CONTINENTS = (  # capital, country, continent
    "Nairobi Kenya Africa; Cairo Egypt Africa; Tokyo Japan Asia; Beijing China Asia; Paris France Europe; "
    "Rome Italy Europe; Accra Ghana Africa; Baghdad Iraq Asia; Athens Greece Europe; Kabul Afghanistan Asia; "
    "Warsaw Poland Europe; Hanoi Vietnam Asia; Kampala Uganda Africa; Oslo Norway Europe; Seoul Korea Asia"
)
CURRENCIES = (  # capital, country, currency
    "Tokyo Japan yen|Japanese; London England pound|British; Moscow Russia ruble|rouble|Russian; "
    "Beijing China yuan|Chinese|ren; Seoul Korea won|Korean; Bangkok Thailand baht|Thai; "
    "Ankara Turkey lira|Turkish; Paris France euro|Euro; Berlin Germany euro|Euro; Rome Italy euro|Euro; "
    "Stockholm Sweden krona|Swedish|kron; Ottawa Canada dollar|Canadian"
)
OTHERS = (  # prompt, middle, answer
    "The month after the month of Christmas is|December|January",
    "The month after the month of Halloween is|October|November",
    "The month after the month of Valentine's Day is|February|March",
    "The month before the month of Christmas is|December|November",
    "The season that comes after the season of snow is|winter|spring,the spring",
    "The color of the fruit that fell on Newton's head is|apple|red,green",
    "The planet named after the god of war is known for its color, which is|Mars|red",
    "The insect that makes honey lives in a|bee|hive,bee,colony,honey",
    "The animal called man's best friend makes a sound called a|dog|bark,how,wh",
    "The animal that gives us milk eats|cow|grass,gr,a lot of grass,hay",
    "The chemical symbol of the metal of wedding rings is|gold|Au",
    "The star at the center of our solar system is mostly made of|Sun|hydrogen,gas",
    "The physicist who found the theory of relativity was born in|Einstein|Germany,Ul,1879",
    "The playwright who wrote Romeo and Juliet was born in|Shakespeare|Strat,England,1564",
    "The first president of the United States was born in|Washington|Virginia,1732",
)


def questions() -> list[Question]:
    """All of them."""
    made = []
    for capital, country, language in _rows(LANGUAGES):
        prompt = f"The main language spoken in the country whose capital is {capital} is"
        made.append(Question(prompt, country, language, "language"))
    for place, country, language in _rows(PLACES, ","):
        prompt = f"The main language spoken in the country in which one finds {place} is"
        made.append(Question(prompt, country, language, "place"))
    for capital, country, continent in _rows(CONTINENTS):
        prompt = f"The country whose capital is {capital} is on the continent of"
        made.append(Question(prompt, country, continent, "continent"))
    for capital, country, currency in _rows(CURRENCIES):
        prompt = f"The currency used in the country whose capital is {capital} is the"
        made.append(Question(prompt, country, currency, "currency"))
    for line in OTHERS:
        prompt, middle, answers = line.split("|")
        made.append(Question(prompt, middle, tuple(answers.split(",")), "other"))
    return made


def _rows(table: str, between: str = " ") -> list[tuple[str, str, tuple[str, ...]]]:
    rows = [row.strip().split(between) for row in table.split(";")]
    return [(first, middle, tuple(answers.split("|"))) for first, middle, answers in rows]
