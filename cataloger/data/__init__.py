"""From Parquet to batches; never torch."""
