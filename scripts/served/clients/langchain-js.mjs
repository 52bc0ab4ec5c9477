// dependencies: langchain@1.5.14 @langchain/core@1.4.0 @langchain/openai@1.6.0 @langchain/anthropic@1.5.11 @langchain/ollama@1.3.0 zod@4.6.7
// LangChain for JavaScript: its OpenAI (both APIs), Anthropic and Ollama models, agents, embeddings.

import { ChatAnthropic } from "@langchain/anthropic";
import { ChatOllama } from "@langchain/ollama";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { createAgent, tool } from "langchain";
import { z } from "zod";
import { all, check, hello, model, url } from "./checks.mjs";

const configuration = { baseURL: `${url}/v1` };
const base = { model, apiKey: "none", configuration, maxTokens: 300 };
const models = {
  ChatOpenAI: new ChatOpenAI(base),
  "ChatOpenAI, responses": new ChatOpenAI({ ...base, useResponsesApi: true }),
  ChatAnthropic: new ChatAnthropic({ model, apiKey: "none", anthropicApiUrl: url, maxTokens: 300 }),
  ChatOllama: new ChatOllama({ model, baseUrl: url, numPredict: 300 }),
};
const Colour = z.object({ name: z.enum(["red", "green", "blue"]), red: z.number().int().min(0).max(255) });
const Sum = z.object({ a: z.number().int().min(0).max(9), b: z.number().int().min(0).max(9) });
const add = tool(({ a, b }) => String(a + b), { name: "add", description: "Adds.", schema: Sum });
for (const [name, llm] of Object.entries(models)) {
  await check(name, async () => (await llm.invoke("Hello")).content);
  await check(`${name}, stream`, async () => await all(await llm.stream("Hello")));
  await check(`${name}, withStructuredOutput`, async () => await llm.withStructuredOutput(Colour).invoke("Red."));
  if (name !== "ChatOllama") {
    // whose API has no way to force a call
    // For /v1/responses the client sends a tool's name and leaves out "any": there the model may answer in words.
    const forced = llm.bindTools([add], { tool_choice: "add" });
    await check(`${name}, bindTools`, async () => (await forced.invoke("1+2")).tool_calls);
    const any = llm.bindTools([add], { tool_choice: "any" });
    await check(`${name}, bindTools, any`, async () => (await any.invoke("1+2")).tool_calls);
  }
  const agent = createAgent({ model: llm, tools: [add] });
  await check(`${name}, createAgent`, async () => (await agent.invoke({ messages: hello })).messages);
}
const vectors = new OpenAIEmbeddings({ model, apiKey: "none", configuration });
await check("600 embeddings", async () => (await vectors.embedDocuments(Array(600).fill("a")))[599]);
