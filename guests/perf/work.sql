-- Inserts, an index, a join and aggregates.
CREATE TABLE part(id INTEGER PRIMARY KEY, name TEXT, kind INTEGER, price REAL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
INSERT INTO part SELECT i, printf('part-%08x', i * 2654435761 % 4294967296), i * 31 % 97, i * 0.37 FROM n;
CREATE INDEX by_name ON part(name);
SELECT kind, count(*), sum(price) FROM part GROUP BY kind ORDER BY 3 DESC LIMIT 3;
SELECT count(*) FROM part a JOIN part b ON b.name = printf('part-%08x', a.id * 2654435761 % 4294967296);
SELECT count(*) FROM part WHERE name LIKE '%ff%';
