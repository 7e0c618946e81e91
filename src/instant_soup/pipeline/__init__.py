"""The run over DVC's folders: its plan, training, MLflow records and processes."""
