"""Training: the loss, the optimizer, the schedule, and a loop that can be stopped anywhere."""
