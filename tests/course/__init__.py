"""The course: each exercise is solved, and wrong answers get the hint that names their fault."""
