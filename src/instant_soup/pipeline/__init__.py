"""The run over DVC's folders: its plan, main network, MLflow records and processes."""
