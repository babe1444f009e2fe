"""The statements that read rows of mirror tables: the next ones past the watermarks, and those before a row.

Owns their composition from names of columns and tables; values are parameters. Never runs them.
"""

from __future__ import annotations

from functools import lru_cache

from psycopg import sql

from scorer.models import Mirror, as_entity, as_features, as_number

Frozen = tuple[str, str, tuple[tuple[str, str], ...], tuple[str, ...]]


def freeze(mirror: Mirror) -> Frozen:
    """What a statement needs to know of a table, hashable."""
    return mirror.schema, mirror.table, tuple(sorted(mirror.columns.items())), mirror.key_columns


@lru_cache(maxsize=256)
def compose_fill(features: tuple[str, ...], entity: str | None, order: str | None, mirrors: tuple[Frozen, ...]) -> sql.Composed:
    """The statement that puts the next rows of all tables, merged by `_seq`, into the batch."""
    parts = []
    for i, (schema, table, column_types, key_columns) in enumerate(mirrors):
        types = dict(column_types)
        key = sql.SQL(", ").join(
            sql.SQL("{}, {}").format(sql.Literal(column), sql.Identifier("m", column)) for column in key_columns
        )
        parts.append(
            sql.SQL(
                "(SELECT {relation}::text AS relation, m._seq AS seq, jsonb_build_object({key}) AS row_key,"
                " {entity} AS entity, {order} AS order_value, {committed} AS committed_at,"
                " ARRAY[{vector}]::float8[] AS features"
                " FROM {table} AS m WHERE m._seq > {seq} AND m._seq <= {until}"
                " ORDER BY m._seq FETCH FIRST %(limit)s ROWS WITH TIES)"
            ).format(
                relation=sql.Literal(f"{schema}.{table}"),
                key=key,
                entity=as_entity("m", entity),
                order=sql.SQL("NULL::float8") if order is None else as_number(sql.Identifier("m", order), types[order]),
                committed=sql.SQL("m._committed_at" if "_committed_at" in types else "NULL::timestamptz"),
                vector=as_features("m", features, types),
                table=sql.Identifier(schema, table),
                seq=sql.Placeholder(f"seq_{i}"),
                until=sql.Placeholder(f"until_{i}"),
            )
        )
    return sql.SQL(
        "INSERT INTO pg_temp.batch (n, relation, seq, row_key, entity, order_value, committed_at, features)"
        " SELECT row_number() OVER (ORDER BY seq, relation, row_key), relation, seq, row_key, entity, order_value,"
        " committed_at, features"
        " FROM (SELECT * FROM ({}) AS candidates ORDER BY seq FETCH FIRST %(limit)s ROWS WITH TIES) AS next_rows"
    ).format(sql.SQL(" UNION ALL ").join(parts))


@lru_cache(maxsize=256)
def compose_neighbours(
    features: tuple[str, ...], entity: str | None, order: str | None, mirrors: tuple[Frozen, ...]
) -> sql.Composed:
    """The statement that reads the last %(count)s rows of an entity before an order value, or, without order, before a _seq."""
    parts = []
    for schema, table, column_types, _ in mirrors:
        types = dict(column_types)
        place = sql.Identifier("m", "_seq") if order is None else as_number(sql.Identifier("m", order), types[order])
        parts.append(
            sql.SQL(
                "(SELECT ARRAY[{vector}]::float8[] AS features, {place} AS place FROM {table} AS m"
                " WHERE {place} < %(before)s AND {whose} ORDER BY {place} DESC LIMIT %(count)s)"
            ).format(
                vector=as_features("m", features, types),
                place=place,
                table=sql.Identifier(schema, table),
                whose=sql.SQL("true") if entity is None else sql.SQL("{} = %(entity)s").format(as_entity("m", entity)),
            )
        )
    return sql.SQL(
        "SELECT features FROM (SELECT * FROM ({}) AS candidates ORDER BY place DESC LIMIT %(count)s) AS found ORDER BY place"
    ).format(sql.SQL(" UNION ALL ").join(parts))
