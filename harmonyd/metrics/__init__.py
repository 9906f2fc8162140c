"""What Prometheus is told: ``families`` is the table of all metrics, ``metrics`` puts together what they say now."""
