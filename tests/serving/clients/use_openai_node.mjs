import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import OpenAI from "openai";

const given = JSON.parse(readFileSync(0, "utf8")), answers = [];
const client = new OpenAI({ baseURL: `${given.url}/v1`, apiKey: given.key, maxRetries: 0 });
const created = async (model, input, options = {}) =>
  (await client.embeddings.create({ model, input, ...options })).data.map((each) => each.embedding);
const note = (call, kind, values) => answers.push({ call, kind, values });
note("embeddings.create (base64)", "plain exactly", await created(given.name, given.texts));
note('embeddings.create({encoding_format: "float"})', "plain exactly", await created(given.name, given.texts, { encoding_format: "float" }));
note('embeddings.create({model: "NAME:query"})', "query", await created(`${given.name}:query`, given.queries));
note("models.list", "names", (await client.models.list()).data.map((each) => each.id));
const { version } = JSON.parse(readFileSync(createRequire(import.meta.url).resolve("openai").replace(/openai\/.*/, "openai/package.json"), "utf8"));
console.log("\n" + JSON.stringify({ versions: { "openai (Node)": version }, answers }));
