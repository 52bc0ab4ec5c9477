"""The data of "How it works": each chapter on the user's own sentence and the loaded model."""
