// dependencies: ai@7.0.173 @ai-sdk/openai@4.0.118 @ai-sdk/openai-compatible@3.0.92 @ai-sdk/anthropic@4.0.105 zod@4.6.7
// Vercel's AI SDK with its OpenAI (chat and responses), openai-compatible and Anthropic providers.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { all, check, model, url } from "./checks.mjs";

const baseURL = `${url}/v1`;
const openai = createOpenAI({ baseURL, apiKey: "none" });
const compatible = { name: "cutaway", baseURL, supportsStructuredOutputs: true };
const models = {
  "openai.chat": openai.chat(model),
  "openai.responses": openai.responses(model),
  "openai-compatible": createOpenAICompatible(compatible)(model),
  anthropic: createAnthropic({ baseURL, apiKey: "none" })(model),
};
const Colour = z.object({ name: z.enum(["red", "green", "blue"]), red: z.number().int().min(0).max(255) });
const add = tool({
  description: "Adds.",
  inputSchema: z.object({ a: z.number().int().min(0).max(9), b: z.number().int().min(0).max(9) }),
  execute: async ({ a, b }) => a + b,
});
for (const [name, llm] of Object.entries(models)) {
  const asked = { model: llm, prompt: "Say hello.", maxOutputTokens: 300 };
  await check(name, async () => (await generateText({ ...asked, maxOutputTokens: 9 })).text);
  await check(`${name}, streamText`, async () => await all(streamText({ ...asked, maxOutputTokens: 9 }).textStream));
  await check(`${name}, tools`, async () => {
    const more = { tools: { add }, toolChoice: "required", stopWhen: stepCountIs(2) };
    return (await generateText({ ...asked, ...more })).steps[0].toolCalls;
  });
  await check(`${name}, streamed tools`, async () => {
    const made = streamText({ ...asked, tools: { add }, toolChoice: "required" });
    return await made.toolCalls;
  });
  await check(`${name}, Output.object`, async () => {
    return (await generateText({ ...asked, output: Output.object({ schema: Colour }) })).output;
  });
}
