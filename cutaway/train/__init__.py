"""How a model is made: the loss, the optimizer, the schedule, and a loop that can be stopped anywhere."""
