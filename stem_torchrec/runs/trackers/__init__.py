"""Where a run's records are shown beside its own folder: TensorBoard, MLflow."""
