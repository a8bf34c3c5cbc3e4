"""What people and machines see of a worker: log lines, metrics, probes. Subscribers of events."""
