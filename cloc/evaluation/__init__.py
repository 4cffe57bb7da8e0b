"""Model + data → metrics, tables, pictures, report."""
