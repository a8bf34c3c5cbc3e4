"""RabbitMQ: the only package that speaks AMQP. See `topology.py` for what exists in the broker."""
