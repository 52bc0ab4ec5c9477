"""Chapter 1, what a language model is: the next token's chances, and how a base becomes an assistant."""

from cutaway.course.chances import CHANCES
from cutaway.course.learning import LEARNING

TITLE = "What a large language model is"
QUESTION = "What is in the file of a language model, and how does it come to answer questions?"
EXERCISES = [*CHANCES, *LEARNING]
