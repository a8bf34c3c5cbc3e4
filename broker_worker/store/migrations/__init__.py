"""The history of our schema. A release works on its own schema and on the next one."""
