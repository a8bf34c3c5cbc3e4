"""See it work: `python -m examples.demo` (or `make demo`).

What a user writes is `handlers.py` (the work) and `publisher.py` (any AMQP client).
The rest is the stage: servers, a mail server and a webhook receiver to talk to,
a table to look at, and an accounting that lets nothing go missing.
"""
