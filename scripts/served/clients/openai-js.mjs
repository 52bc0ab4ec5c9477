// dependencies: openai@7.57.0 zod@4.6.7
// OpenAI's SDK for JavaScript: chat, parse, runTools, responses, embeddings.

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { all, check, hello, model, tool, url } from "./checks.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const chat = client.chat.completions;
const few = { model, messages: hello, max_tokens: 9 };
const Colour = z.object({ name: z.enum(["red", "green", "blue"]), red: z.number().int().min(0).max(255) });
const runnable = { ...tool.function, parse: JSON.parse, function: ({ a, b }) => String(a + b) };
const flat = { type: "function", ...tool.function, strict: false };

await check("models", async () => (await all(client.models.list())).length);
await check("chat", async () => (await chat.create(few)).choices[0].message.content);
await check("stream", async () => await all(await chat.create({ ...few, stream: true })));
await check("chat.stream", async () => await chat.stream(few).finalContent());
await check("parse with zod", async () => {
  const response_format = zodResponseFormat(Colour, "colour");
  return (await chat.parse({ model, messages: hello, response_format, max_tokens: 400 })).choices[0].message.parsed;
});
await check("tools", async () => {
  const forced = { tools: [tool], tool_choice: "required", max_tokens: 99 };
  return (await chat.create({ model, messages: hello, ...forced })).choices[0].message.tool_calls;
});
await check("runTools", async () => {
  const tools = [{ type: "function", function: runnable }];
  const few = { max_tokens: 400, temperature: 0 }; // so that the model comes to an end: a cut answer is an error
  const runner = chat.runTools({ model, messages: hello, tools, ...few }, { maxChatCompletions: 2 });
  await runner.done();
  return runner.messages;
});
const asked = { model, input: "Hello", max_output_tokens: 9 };
await check("responses", async () => (await client.responses.create(asked)).output_text);
await check("responses.stream", async () => (await client.responses.stream(asked).finalResponse()).output_text);
await check("responses.parse with zod", async () => {
  const text = { format: zodTextFormat(Colour, "colour") };
  return (await client.responses.parse({ model, input: "Red.", text })).output_parsed;
});
await check("responses, tools, previous_response_id", async () => {
  const more = { model, tools: [flat], max_output_tokens: 99 };
  const made = await client.responses.create({ ...more, input: "1+2", tool_choice: "required" });
  const call = made.output.find((one) => one.type === "function_call");
  const input = [{ type: "function_call_output", call_id: call.call_id, output: "3" }];
  return (await client.responses.create({ ...more, input, previous_response_id: made.id })).output;
});
await check("responses.compact", async () => {
  const made = await client.responses.compact(asked);
  const input = [...made.output, { role: "user", content: "Go on" }];
  return (await client.responses.create({ ...asked, input })).output_text;
});
await check("embeddings", async () => {
  const made = await client.embeddings.create({ model, input: Array(600).fill("a") });
  return made.data[599].embedding;
});
