"""Everything that imports Spark: sessions, barrier stages, broadcasts, tasks with progress."""
