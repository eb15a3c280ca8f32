// Runs one real drizzle-orm migrator (the generation in this file's name) over one folder, as a project's own
// migrate.ts does, and says in one line of JSON how it ended.
//   DATABASE_URL=… node migrate_v1.mjs <folder> [migrationsSchema] [migrationsTable]
import { drizzle } from "drizzle-orm-v1/postgres-js";
import { migrate } from "drizzle-orm-v1/postgres-js/migrator";
import postgres from "postgres";

const [migrationsFolder, migrationsSchema, migrationsTable] = process.argv.slice(2);
const client = postgres(process.env.DATABASE_URL, { max: 1, max_lifetime: null, onnotice: () => {} });
const started = performance.now();
let outcome;
try {
  await migrate(drizzle({ client }), { migrationsFolder, migrationsSchema, migrationsTable });
  outcome = { ok: true };
} catch (error) {
  const cause = error.cause ?? error;
  outcome = { ok: false, sqlstate: cause.code ?? null, message: String(cause.message) };
  process.exitCode = 1;
}
console.log(JSON.stringify({ ...outcome, migrate_ms: performance.now() - started }));
await client.end();
