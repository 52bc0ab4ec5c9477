"""Chapter 7, attention from Bahdanau to latents: masks and shared heads, then what the past costs."""

from cutaway.course.attention_masks import MASKS
from cutaway.course.attention_past import PAST

TITLE = "Attention, from Bahdanau to latents"
QUESTION = (
    "Attention compares all tokens with all tokens. What was it invented for, and how is it made cheaper?"
)
EXERCISES = [*MASKS, *PAST]
