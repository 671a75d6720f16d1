"""What only time and load show: overload, an outage of Redis, rolling restarts, churn of prompts."""
