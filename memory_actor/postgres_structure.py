"""What a schema's tables are made of, in terms that no version of the server words differently: to be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory_actor.postgres import Driver

_STRUCTURE = """
WITH ours AS (
  SELECT c.* FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
)
SELECT 'table', relname::text, relkind::text, relpersistence::text || relrowsecurity::text, '' FROM ours
UNION ALL
SELECT 'column', t.relname, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull::text
  FROM ours t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid WHERE a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'index', t.relname, i.relname, x.indisunique::text || x.indisprimary::text || x.indisvalid::text,
       (SELECT coalesce(string_agg(a.attname, ',' ORDER BY k.place), '')
          FROM unnest(x.indkey) WITH ORDINALITY k (number, place)
          JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.number)
  FROM ours t JOIN pg_catalog.pg_index x ON x.indrelid = t.oid JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
UNION ALL
SELECT 'foreign key', t.relname, f.relname, c.confdeltype::text, c.convalidated::text
  FROM ours t JOIN pg_catalog.pg_constraint c ON c.conrelid = t.oid AND c.contype = 'f'
  JOIN pg_catalog.pg_class f ON f.oid = c.confrelid
UNION ALL
SELECT 'trigger', t.relname, g.tgname, g.tgenabled::text, ''
  FROM ours t JOIN pg_catalog.pg_trigger g ON g.tgrelid = t.oid WHERE NOT g.tgisinternal
UNION ALL
SELECT 'rule', t.relname, r.rulename, r.ev_enabled::text, ''
  FROM ours t JOIN pg_catalog.pg_rewrite r ON r.ev_class = t.oid
"""


def structure_of(driver: Driver, schema: str) -> list[list[Any]]:
    """Tables, columns, indexes, foreign keys, triggers and rules as rows (kind, table, name, …), in one order.

    Raises psycopg.Error.
    """
    # Sorted here: the server's order is that of its collation, which an upgrade of its operating system may change.
    return sorted(list(row) for row in driver.execute(_STRUCTURE, [schema]).fetchall())
