"""The tasks that compared models learn: one file each, with rows, metric, chance level and source."""
