"""What a run leaves behind: journal, log, progress bar, MLflow."""
