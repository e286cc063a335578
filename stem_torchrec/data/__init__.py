"""Raw data -> Parquet -> batches."""
