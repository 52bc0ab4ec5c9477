"""How a model is made: the loss, the optimiser, the schedule, and a loop that can be stopped anywhere."""
