// dependencies: @anthropic-ai/sdk@1.14.0 zod@4.6.7
// Anthropic's SDK for JavaScript: messages, streams, tools, its tool runner, counting.

import Anthropic from "@anthropic-ai/sdk";
import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";
import { all, check, hello, model, schema, url } from "./checks.mjs";

const client = new Anthropic({ baseURL: url, apiKey: "none" });
const few = { model, messages: hello, max_tokens: 9 };
const add = { name: "add", description: "Adds.", input_schema: schema };
const sum = betaTool({ name: "add", description: "Adds.", inputSchema: schema, run: ({ a, b }) => String(a + b) });

await check("messages", async () => (await client.messages.create(few)).content[0].text);
await check("stream", async () => await client.messages.stream(few).finalText());
await check("stream: true", async () => await all(await client.messages.create({ ...few, stream: true })));
await check("tools and results", async () => {
  const asked = { model, max_tokens: 99, tools: [add] };
  const made = await client.messages.create({ ...asked, messages: hello, tool_choice: { type: "any" } });
  const results = made.content
    .filter((block) => block.type === "tool_use")
    .map((block) => ({ type: "tool_result", tool_use_id: block.id, content: "3" }));
  const turns = [{ role: "assistant", content: made.content }, { role: "user", content: results }];
  return (await client.messages.create({ ...asked, messages: [...hello, ...turns] })).content;
});
await check("toolRunner", async () => {
  const asked = { model, messages: hello, max_tokens: 99, tools: [sum], max_iterations: 2 };
  return await all(client.beta.messages.toolRunner(asked));
});
await check("thinking", async () => {
  const thinking = { type: "enabled", budget_tokens: 1024 };
  return (await client.messages.create({ ...few, max_tokens: 2048, thinking })).content;
});
await check("countTokens", async () => (await client.messages.countTokens({ model, messages: hello })).input_tokens);
await check("models", async () => (await all(client.models.list())).length);
