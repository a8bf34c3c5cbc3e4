"""What handlers ask for beside their outcome: progress, checkpoints, deadlines, messages of their own."""

from __future__ import annotations

from alembic import context, op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# only what a release on schema 0001 does not notice: columns with a constant default, tables, functions
STATEMENTS = """
ALTER TABLE {schema}.tasks
  ADD COLUMN progress real CHECK (progress BETWEEN 0 AND 1),
  ADD COLUMN progress_note text,
  ADD COLUMN deadline_at timestamptz,
  ADD COLUMN is_awaited boolean NOT NULL DEFAULT false;

CREATE TABLE {schema}.checkpoints (
  task_key bigint PRIMARY KEY REFERENCES {schema}.tasks (key) ON DELETE CASCADE,
  state json NOT NULL,
  saved_at timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE {schema}.outbox
  ADD COLUMN exchange text,
  DROP CONSTRAINT outbox_kind_check,
  ADD CONSTRAINT outbox_kind_check CHECK (kind IN ('copy', 'dead_letter', 'reply', 'event'))
"""


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    for statement in STATEMENTS.format(schema=f'"{schema}"').split(";\n\n"):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("data is never thrown away by a migration")
