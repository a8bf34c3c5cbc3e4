"""What a table of many millions of tasks needs: room in each page, a list of what did not just succeed.

A group commit finishes all tasks of a page in one transaction, so a page needs room for
a second version of each of its rows; then a success stays heap-only and no index grows
by it. `other_state` is null before and after a plain success, so that its index does
not hinder that either. The guard against illegal steps looks after the update: before
it, Postgres would lock each row once more, and log that.

`finish` ends a task in the transaction of its handler, where the statement rides on the COMMIT.

The new column rewrites `tasks`, which stays locked meanwhile: a minute for ten million rows.
"""

from __future__ import annotations

from alembic import context, op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATEMENTS = """
ALTER TABLE {schema}.tasks SET (fillfactor = 45);

ALTER TABLE {schema}.tasks ADD COLUMN other_state text GENERATED ALWAYS AS (
  CASE WHEN state NOT IN ('running', 'succeeded') THEN state END
) STORED;

CREATE INDEX tasks_other ON {schema}.tasks (other_state, key)
  INCLUDE (queue, name, created_at) WHERE other_state IS NOT NULL;

DROP TRIGGER legal_step ON {schema}.tasks;

CREATE TRIGGER legal_step AFTER UPDATE ON {schema}.tasks FOR EACH ROW
WHEN (NOT (
  (OLD.state = 'running' AND NEW.state <> 'expired')
  OR (OLD.state IN ('queued', 'retrying') AND NEW.state <> 'succeeded')
  OR (OLD.state = NEW.state AND OLD.epoch = NEW.epoch)
  OR (OLD.state = 'dead' AND NEW.state = 'queued' AND NEW.epoch > OLD.epoch)
))
EXECUTE FUNCTION {schema}.refuse_illegal_step();

CREATE INDEX dead_letters_newest ON {schema}.dead_letters (failed_at, id);

CREATE INDEX dead_letters_resolved ON {schema}.dead_letters (resolved_at) WHERE resolved_at IS NOT NULL;

CREATE INDEX dead_letters_keyless ON {schema}.dead_letters (message_id) WHERE task_key IS NULL;

ALTER TABLE {schema}.workers ADD COLUMN swept_to bigint NOT NULL DEFAULT 0;

CREATE FUNCTION {schema}.finish(
  task_key bigint, task_epoch integer, task_worker uuid, task_result json, fence text, drops_body boolean
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF current_setting('broker_worker.claim', true) IS DISTINCT FROM fence THEN
    RAISE EXCEPTION 'the transaction is not the one that was begun' USING ERRCODE = 'BW002';
  END IF;
  PERFORM {schema}.complete(task_key, task_epoch, task_worker, task_result, NULL);
  IF drops_body THEN
    DELETE FROM {schema}.payloads p WHERE p.task_key = finish.task_key;
  END IF;
END $$
"""


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    for statement in STATEMENTS.format(schema=f'"{schema}"').split(";\n\n"):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("data is never thrown away by a migration")
