"""A worker daemon for RabbitMQ and Postgres."""
