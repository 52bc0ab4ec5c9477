// dependencies: promptfoo@0.123.1
// promptfoo: `promptfoo eval` with its openai, anthropic and ollama providers.

import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { check, home, model, url } from "./checks.mjs";

const providers = [
  { id: `openai:chat:${model}`, config: { apiBaseUrl: `${url}/v1`, apiKey: "none", max_tokens: 20 } },
  { id: `openai:completion:${model}`, config: { apiBaseUrl: `${url}/v1`, apiKey: "none", max_tokens: 20 } },
  { id: `openai:responses:${model}`, config: { apiBaseUrl: `${url}/v1`, apiKey: "none", max_output_tokens: 20 } },
  { id: `anthropic:messages:${model}`, config: { apiBaseUrl: url, apiKey: "none", max_tokens: 20 } },
  { id: `ollama:chat:${model}`, config: { num_predict: 20 } },
];
const quiet = { PROMPTFOO_DISABLE_TELEMETRY: "1", PROMPTFOO_DISABLE_UPDATE: "1", PROMPTFOO_CONFIG_DIR: home };
const env = { PATH: process.env.PATH, HOME: home, OLLAMA_BASE_URL: url, ...quiet };

for (const provider of providers) {
  await check(provider.id.replace(`:${model}`, ""), () => {
    const config = { prompts: ["Say hello to {{name}}."], providers: [provider], tests: [{ vars: { name: "Ann" } }] };
    writeFileSync(`${home}/config.json`, JSON.stringify(config));
    const program = `${import.meta.dirname}/node_modules/promptfoo/dist/src/entrypoint.js`;
    const words = ["eval", "-c", `${home}/config.json`, "-o", `${home}/out.json`, "--no-cache", "--no-table"];
    rmSync(`${home}/out.json`, { force: true });
    const done = spawnSync("node", [program, ...words], { env, cwd: home, encoding: "utf8", timeout: 300_000 });
    if (!existsSync(`${home}/out.json`)) throw new Error((done.stdout + done.stderr).trim().replaceAll("\n", " "));
    const { results } = JSON.parse(readFileSync(`${home}/out.json`)).results;
    if (results[0].error) throw new Error(results[0].error);
    return done.status === 0 && results[0].response.output;
  });
}
