"""The world in memory: what tests put in place of RabbitMQ, Postgres and the clock."""
