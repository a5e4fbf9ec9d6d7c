"""Tables of Delta Lake and Iceberg: one snapshot of them is read, and labels become their next one."""
