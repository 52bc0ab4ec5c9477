"""Days and months: what comes so many days after a date, a weekday or a month, and how long a month is."""

from __future__ import annotations

import calendar
import re
from datetime import date, timedelta
from random import Random

from cutaway.data.programs.item import Item

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
FIRST, LAST = date(1990, 1, 1), date(2040, 12, 31)
PHRASES = {
    "date": ("What date is {n} after {start}?", "It is {start}. What date is it {n} later?"),
    "day": ("Which weekday is {n} after {start}?", "Today is {start}. What day is it in {n}?"),
    "month": ("Which month comes after {start}?", "What is the month after {start}?"),
    "length": ("How many days has {start}?", "How many days are there in {start}?"),
}


def draw(random: Random) -> Item:
    """A question of one of the kinds, dates the most often."""
    kind = random.choice(("date", "date", "date", "day", "day", "month", "length"))
    phrase = random.choice(PHRASES[kind])
    count = random.randint(1, 3)
    days = "1 day" if count == 1 else f"{count} days"
    if kind == "date":
        start = FIRST + timedelta(random.randrange((LAST - FIRST).days))
        end, wrong = start + timedelta(count), start + timedelta(count + random.choice((-1, 1)))
        asked, answer, near = spelled(start), spelled(end), spelled(wrong)
    elif kind == "day":
        at = random.randrange(7)
        asked, answer, near = DAYS[at], DAYS[(at + count) % 7], DAYS[(at + count + 1) % 7]
    elif kind == "month":
        at = random.randrange(12)
        asked, answer, near = MONTHS[at], MONTHS[(at + 1) % 12], MONTHS[(at + 2) % 12]
    else:
        year, month = random.randint(1990, 2040), random.randint(1, 12)
        length = calendar.monthrange(year, month)[1]
        asked, answer, near = f"{MONTHS[month - 1]} {year}", str(length), str(length - 1)
    question = phrase.format(n=days, start=asked)
    # Few weekdays and months exist: there the phrasing decides what is held out too.
    facts = f"dates {kind} {days if kind in ('date', 'day') else ''} {asked}"
    return Item(question, answer, facts + ("" if kind in ("date", "length") else phrase), near)


def spelled(day: date) -> str:
    """A date as it is asked and answered: 3 March 2024."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def solve(question: str) -> str:
    """The answer, from the question's own text: months and years are counted up day by day."""
    count = re.search(r"\b(\d) days?\b", question)
    whole = re.search(r"(\d+) ([A-Z][a-z]+) (\d{4})", question)
    if whole and count:
        day, month, year = int(whole[1]), MONTHS.index(whole[2]) + 1, int(whole[3])
        for _ in range(int(count[1])):
            day += 1
            if day > _length(month, year):
                day, month = 1, month + 1
            if month > 12:
                month, year = 1, year + 1
        return f"{day} {MONTHS[month - 1]} {year}"
    if count:
        start = next(name for name in DAYS if name in question)
        return (DAYS * 2)[DAYS.index(start) + int(count[1])]
    month = re.search(r"([A-Z][a-z]+) (\d{4})", question)
    if month:
        return str(_length(MONTHS.index(month[1]) + 1, int(month[2])))
    return (MONTHS * 2)[MONTHS.index(question.rstrip("?").split()[-1]) + 1]


def _length(month: int, year: int) -> int:
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 28 + leap if month == 2 else 30 + (month + month // 8) % 2
