// dependencies: ollama@0.6.4
// Ollama's SDK for JavaScript: chat, generate, format, tools, embed, what the model is.

import { Ollama } from "ollama";
import { all, check, hello, model, schema, tool, url } from "./checks.mjs";

const client = new Ollama({ host: url });
const few = { model, messages: hello, options: { num_predict: 9 } };

await check("chat", async () => (await client.chat(few)).message.content);
await check("stream", async () => await all(await client.chat({ ...few, stream: true })));
await check("format", async () => {
  const made = await client.chat({ model, messages: hello, format: schema });
  return Number.isInteger(JSON.parse(made.message.content).a);
});
await check("tools", async () => (await client.chat({ ...few, tools: [tool] })).message);
await check("think", async () => (await client.chat({ ...few, think: false })).message.content);
const prompt = { model, prompt: "Hello", options: { num_predict: 9 } };
await check("generate", async () => (await client.generate(prompt)).response);
await check("generate, stream", async () => await all(await client.generate({ ...prompt, stream: true })));
await check("list, show, ps, version", async () => {
  const made = [await client.list(), await client.show({ model }), await client.ps(), await client.version()];
  return made[0].models.length && made[1].capabilities && made[2].models.length && made[3].version;
});
await check("embed", async () => (await client.embed({ model, input: ["a", "b"] })).embeddings);
