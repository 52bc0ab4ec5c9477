"""What compared models learn: one file a task, with its rows, its metric, its chance level and its source."""
